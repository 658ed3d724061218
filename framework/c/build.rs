//! The shared library's name for the loader: what a program linked with it asks for. Before 1.0, minor versions are not compatible.

fn main() {
    let part = |name| std::env::var(name).unwrap_or_default();
    let name = format!("libwholebar.so.{}.{}", part("CARGO_PKG_VERSION_MAJOR"), part("CARGO_PKG_VERSION_MINOR"));
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{name}");
    println!("cargo:rerun-if-changed=build.rs");
}
