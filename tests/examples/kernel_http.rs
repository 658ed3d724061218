//! A web server on the kernel's network stack, for tests/http.sh to compare `hello-http` with. It serves one file to whoever asks, one after the other, by
//! `sendfile`, and knows nothing else of HTTP:
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example kernel_http -- 127.0.0.1:8080 image.iso
//! ```

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &args[..] else { anyhow::bail!("usage: kernel_http ADDRESS:PORT FILE") };
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    for client in listener.incoming() {
        if let Err(error) = client.map_err(Into::into).and_then(|client| answer(&client, path.as_ref())) {
            eprintln!("kernel_http: {error:#}");
        }
    }
    Ok(())
}

fn answer(mut client: &TcpStream, path: &Path) -> Result<()> {
    // The request ends with an empty line.
    let mut lines = BufReader::new(client).lines();
    while lines.next().context("it asked for nothing")??.trim() != "" {}
    let mut file = File::open(path)?;
    write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", file.metadata()?.len())?;
    // Between a file and a socket this is `sendfile`.
    std::io::copy(&mut file, &mut client)?;
    Ok(())
}
