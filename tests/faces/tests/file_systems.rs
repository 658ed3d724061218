//! A file system of somebody else's over the blocking face of a disk, on every backend; and that face while its device is reset.
//!
//! `fatfs` knows `Read`, `Write` and `Seek` only. What it does to a disk it does to a plain image too, and both are the same in the end. Images of
//! ext4 are read by tests/ext4.sh.

use anyhow::{Context, Result, ensure};
use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions, ReadWriteSeek};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;
use wholebar::block::{self, Event};
use wholebar::blocking::{Config, Disk, Error};
use wholebar::control_plane::DeviceEvent;
use wholebar::nvme::{self as driver, Nvme};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::virtio::Blk;
use wholebar::virtio::blk::BlkConfig;
use wholebar_tests::storage::PATIENCE;
use wholebar_tests::{Rig, behind_socket, in_process, nvme, on_thread, rigs, vfio_user, virtio};

/// Bytes of the volumes.
const SIZE: usize = 1 << 20;

fn nvme_disk(rig: &Rig, options: driver::Options) -> Result<Arc<dyn block::Disk>> {
    Ok(Arc::new(Nvme::open(rig.device.clone(), options)?))
}

fn virtio_disk(rig: &Rig, options: wholebar::virtio::Options) -> Result<Arc<dyn block::Disk>> {
    Ok(Arc::new(Blk::open(rig.device.clone(), &BlkConfig::default(), options)?))
}

/// NVMe in this process and behind a socket, virtio-blk likewise.
const EVERYWHERE: &[usize] = &[0, 1, 2, 3];

/// Does it to a disk in each of these ways.
fn on_disks(ways: &[usize], params: &str, body: impl Fn(&Arc<dyn block::Disk>) -> Result<()>) -> Result<()> {
    for &way in ways {
        let (rig, disk) = match way {
            0 | 1 => {
                let rig = if way == 0 { in_process(params) } else { vfio_user(params) }?;
                let disk = nvme_disk(&rig, nvme::patient())?;
                (rig, disk)
            }
            _ => {
                let rig = match way {
                    2 => on_thread(&format!("sim:virtio-blk,{params}")),
                    _ => behind_socket(blk::model(BlkParams::parse(params)?)?),
                }?;
                let disk = virtio_disk(&rig, virtio::patient())?;
                (rig, disk)
            }
        };
        body(&disk).with_context(|| format!("{} {params} {}", disk.driver(), rig.name))?;
    }
    Ok(())
}

fn patient() -> Config {
    Config { unaligned: true, timeout: PATIENCE, ..Config::default() }
}

/// Different bytes for each file.
fn content(file: usize) -> Vec<u8> {
    let mut bytes = vec![0; file * file * 611 % 30_000 + file];
    fastrand::Rng::with_seed(file as u64).fill(&mut bytes);
    bytes
}

/// The file system reads and writes a field at a time, each of which takes a request or two: there are thousands of them.
const FILES: usize = 3;

fn path(file: usize) -> String {
    format!("folder {}/a long name {file}", file % 2)
}

/// Formats a volume and fills it with files, some of which it removes, renames or writes to again.
fn fill(mut disk: impl ReadWriteSeek) -> Result<()> {
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_id(7).bytes_per_cluster(4096))?;
    let volume = FileSystem::new(disk, FsOptions::new())?;
    let root = volume.root_dir();
    (0..2).try_for_each(|folder| root.create_dir(&format!("folder {folder}")).map(drop))?;
    for file in 0..FILES {
        root.create_file(&path(file))?.write_all(&content(file + 1))?;
    }
    for file in (0..FILES).step_by(3) {
        root.remove(&path(file))?;
    }
    for file in (1..FILES).step_by(3) {
        let mut again = root.open_file(&path(file))?;
        again.seek(SeekFrom::Start(file as u64 / 2))?;
        again.write_all(&content(file))?;
        again.truncate()?;
    }
    root.rename(&path(2), &root, "moved")?;
    drop(root);
    Ok(volume.unmount()?)
}

/// Whether a volume holds what [`fill`] left there.
fn check(mut disk: impl ReadWriteSeek) -> Result<()> {
    disk.rewind()?;
    let volume = FileSystem::new(disk, FsOptions::new())?;
    ensure!(matches!(volume.fat_type(), FatType::Fat12 | FatType::Fat16), "{:?}", volume.fat_type());
    let root = volume.root_dir();
    let files = |dir: &Dir<'_, _>| dir.iter().filter(|entry| entry.as_ref().is_ok_and(|entry| entry.is_file())).count();
    let mut there = files(&root);
    for folder in 0..2 {
        there += files(&root.open_dir(&format!("folder {folder}"))?);
    }
    ensure!(there == FILES - FILES.div_ceil(3), "{there} files");
    for file in 0..FILES {
        let mut expected = content(file + 1);
        let name = match file % 3 {
            0 => continue,
            1 => {
                expected.truncate(file / 2);
                expected.resize(file / 2, 0);
                expected.extend(content(file));
                path(file)
            }
            _ if file == 2 => "moved".to_owned(),
            _ => path(file),
        };
        let mut bytes = Vec::new();
        root.open_file(&name)?.read_to_end(&mut bytes)?;
        ensure!(bytes == expected, "{name}: {} bytes, not what was written", bytes.len());
    }
    Ok(())
}

fn a_fat_volume(ways: &[usize], params: &str) -> Result<()> {
    let mut image = Cursor::new(vec![0; SIZE]);
    fill(&mut image)?;
    check(&mut image)?;
    on_disks(ways, params, |disk| {
        fill(Disk::open(disk.clone(), &patient())?)?;
        // By another queue, with other buffers: what the first had is not needed any more.
        check(Disk::open(disk.clone(), &Config { buffers: 2, buffer_size: 64 << 10, ..patient() })?)?;
        let mut bytes = vec![0; SIZE];
        Disk::open(disk.clone(), &patient())?.read_exact(&mut bytes)?;
        ensure!(bytes == *image.get_ref(), "the disk is not what the image is");
        Ok(())
    })
}

#[test]
fn a_fat_volume_in_blocks_of_512() -> Result<()> {
    a_fat_volume(EVERYWHERE, "size=1M")
}

/// One block holds eight of the file system's sectors. A socket makes no difference to that.
#[test]
fn a_fat_volume_in_blocks_of_4096() -> Result<()> {
    a_fat_volume(&[0, 2], "size=1M,block=4096")
}

#[test]
fn what_is_done_while_a_device_is_reset_is_done() -> Result<()> {
    const RESETS: usize = 5;
    on_disks(EVERYWHERE, "size=1M", |disk| {
        let mut blocking = Disk::open(disk.clone(), &patient())?;
        std::thread::scope(|scope| {
            let resets = scope.spawn(|| (0..RESETS).try_for_each(|_| disk.reset()));
            let mut round = 0;
            while !resets.is_finished() || round == 0 {
                round += 1;
                let (bytes, at) = (content(100 + round % 9), round as u64 * 1001 % 900_000);
                blocking.write_all_at(&bytes, at)?;
                let mut back = vec![0; bytes.len()];
                blocking.read_exact_at(&mut back, at)?;
                ensure!(bytes == back, "round {round} came back changed");
                blocking.flush()?;
            }
            Ok(resets.join().expect("it does not panic")?)
        })?;
        let resets = std::iter::from_fn(|| disk.event())
            .filter(|event| matches!(event, Event::Device(DeviceEvent::Reset { .. })))
            .count();
        ensure!(resets == RESETS, "{resets} resets");
        Ok(())
    })
}

/// Completions that cannot be true cost the controller a reset each: what was in flight is done again.
#[test]
fn a_controller_that_lies_loses_no_data() -> Result<()> {
    for rig in rigs("size=1M,faults=head:@20+head:@40+head:@60")? {
        let disk = nvme_disk(&rig, nvme::patient())?;
        let mut blocking = Disk::open(disk.clone(), &Config { buffer_size: 4096, ..patient() })?;
        let bytes = content(170);
        ensure!(bytes.len() > 20 * 512, "{} bytes are too few", bytes.len());
        for round in 0..30 {
            blocking.write_all_at(&bytes, round * 30_000 + 7)?;
        }
        for round in 0..30 {
            let mut back = vec![0; bytes.len()];
            blocking.read_exact_at(&mut back, round * 30_000 + 7)?;
            ensure!(back == bytes, "{}: round {round} came back changed", rig.name);
        }
        let resets = std::iter::from_fn(|| disk.event())
            .filter(|event| matches!(event, Event::Device(DeviceEvent::Reset { .. })))
            .count();
        ensure!(resets == 3, "{}: {resets} resets", rig.name);
    }
    Ok(())
}

#[test]
fn a_device_that_vanishes_is_gone() -> Result<()> {
    for rig in rigs("size=1M,faults=vanish:@200")? {
        let disk = nvme_disk(&rig, nvme::patient())?;
        let mut blocking = Disk::open(disk.clone(), &patient())?;
        let error = std::thread::scope(|scope| {
            // Whoever has to do with its registers sees it.
            scope.spawn(|| while disk.reset().is_ok() {});
            loop {
                if let Err(error) = blocking.read_at(&mut [0; 3000], 99) {
                    break error;
                }
            }
        });
        ensure!(error.kind() == std::io::ErrorKind::NotConnected, "{}: {error}", rig.name);
        ensure!(matches!(error.downcast::<Error>()?, Error::Gone { .. }), "not said so");
    }
    Ok(())
}

/// Nobody polls the queue of a disk between calls, so that a reset loses it: the next call has another, or says why not.
#[test]
fn a_reset_between_calls_loses_no_data() -> Result<()> {
    const SOON: Duration = Duration::from_millis(1);
    let loses_nothing = |name: &str, disk: &Arc<dyn block::Disk>| -> Result<()> {
        let mut blocking = Disk::open(disk.clone(), &patient())?;
        blocking.write_all_at(b"before", 1000)?;
        let told = disk.reset();
        let lost = std::iter::from_fn(|| disk.event())
            .any(|event| matches!(event, Event::Device(DeviceEvent::Reset { lost, .. }) if lost.len() == 1));
        ensure!(lost, "{name}: no queue was lost: {told:?}");
        let mut bytes = [0; 6];
        blocking.read_exact_at(&mut bytes, 1000)?;
        ensure!(&bytes == b"before", "{name}: {bytes:?}");
        Ok(())
    };
    for rig in rigs("size=8M")? {
        loses_nothing(rig.name, &nvme_disk(&rig, driver::Options { stop_timeout: SOON, ..nvme::patient() })?)?;
    }
    let rig = on_thread("sim:virtio-blk,size=8M")?;
    let options = wholebar::virtio::Options { stop_timeout: SOON, ..virtio::patient() };
    loses_nothing(rig.name, &virtio_disk(&rig, options)?)?;
    Ok(())
}
