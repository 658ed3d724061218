//! Models in a process's other thread, behind a vfio-user socket.
#![cfg(not(miri))]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::pci::PciDevice;
use wholebar_core::vfio_user::{Options, VfioUser};
use wholebar_sim::{ModelParams, Target, serve};

/// Serves `model`, and has `client` run on its socket.
fn with_server(model: &str, client: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("model.sock");
    let params = Target::parse(model).unwrap().params;
    let stop = AtomicBool::new(false);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&params, &socket, false, &stop, || ready.send(()).unwrap()));
        is_ready.recv().unwrap();
        client(&socket);
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap().unwrap();
    });
    assert!(!socket.exists());
}

fn open_bar(socket: &Path) -> Bar {
    let device: Arc<dyn PciDevice> = VfioUser::connect(socket, Options::default()).unwrap();
    Bar::of(device, 0, BarOptions::default()).unwrap()
}

#[test]
fn an_nvme_controller_is_served_to_one_client_after_another() {
    with_server("sim:nvme,entries=64", |socket| {
        for _ in 0..3 {
            let bar = open_bar(socket);
            assert_eq!(bar.read::<u64>(0).unwrap() & 0xffff, 63);
            assert_eq!(bar.read::<u32>(8).unwrap(), 0x0002_0000);
            assert_eq!(bar.read::<u32>(0x24).unwrap(), 0, "the client before is forgotten");
            bar.write(0x24, 0x000f_000fu32).unwrap();
        }
    });
}

#[test]
fn an_fpga_is_served() {
    with_server("sim:fpga", |socket| {
        let bar = open_bar(socket);
        assert_eq!(bar.read::<u32>(0x3000).unwrap(), 0x4650_4741);
        bar.write(0x210c, 4u32).unwrap();
        assert_eq!(bar.read::<u32>(0x2104).unwrap(), 4);
    });
}

#[test]
fn the_two_ends_of_a_pair_are_served_side_by_side() {
    // Acknowledge, driver, VERSION_1 and VIRTIO_NET_F_STATUS, FEATURES_OK, DRIVER_OK.
    let drive = |bar: &Bar| {
        for status in [0u8, 1, 3] {
            bar.write(0x14, status).unwrap();
        }
        for (half, features) in [(0u32, 1u32 << 16), (1, 1)] {
            bar.write(0x08, half).unwrap();
            bar.write(0x0c, features).unwrap();
        }
        bar.write(0x14, 11u8).unwrap();
        bar.write(0x14, 15u8).unwrap();
        assert_eq!(bar.read::<u8>(0x14).unwrap(), 15);
    };
    let link = |bar: &Bar, up: u16| {
        let start = std::time::Instant::now();
        while bar.read::<u16>(0x2006).unwrap() != up {
            assert!(start.elapsed().as_secs() < 600, "the link is never {up}");
            std::thread::yield_now();
        }
    };
    let model = "sim:virtio-net,wire=pair:served";
    with_server(model, |one| {
        with_server(model, |other| {
            let (one, other) = (open_bar(one), open_bar(other));
            drive(&one);
            link(&one, 0);
            link(&other, 1);
            drive(&other);
            link(&one, 1);
            // A client that goes takes the link with it.
            drop(other);
            link(&one, 0);
        });
    });
}

#[test]
fn a_model_that_cannot_be_made_is_not_served() {
    let params = Target::parse("sim:nvme,file=/nonexistent/file").unwrap().params;
    assert!(matches!(params, ModelParams::Nvme(_)));
    let stop = AtomicBool::new(false);
    let error = serve(&params, Path::new("/nonexistent/socket"), false, &stop, || panic!("ready")).unwrap_err();
    assert!(error.to_string().starts_with("backing file /nonexistent/file: "), "{error}");
}
