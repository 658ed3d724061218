//! A disk's back end that is killed while requests are in flight, and started again: none is lost, none completes twice, and the driver sees no reset.
//!
//! The back end is another process, since a thread cannot be killed: this very program, told where to listen.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use wholebar::block::{Data, Op, Reject, Status};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::vhost_user::{Options, Server, VhostUser};
use wholebar::virtio::Blk;
use wholebar::virtio::blk::BlkConfig;
use wholebar_tests::storage::{PATIENCE, fill, holds, ok, request, run};
use wholebar_tests::virtio;

/// The folder of the socket and of the disk's file.
const FOLDER: &str = "WHOLEBAR_TEST_BACK_END";
const BLOCKS: u64 = 512;
const BLOCK: u32 = 512;

/// The other process: it serves until it is killed.
#[test]
fn back_end() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return Ok(()) };
    let params = format!("file={},queues=2", folder.join("disk").display());
    let mut server = Server::bind(folder.join("socket"), blk::model(BlkParams::parse(&params)?)?)?;
    Ok(server.run(&AtomicBool::new(false))?)
}

struct BackEnd(Child);

impl BackEnd {
    fn start(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let child = Command::new(program).args(["--exact", "back_end", "--nocapture"]).env(FOLDER, folder).spawn()?;
        Ok(Self(child))
    }

    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn no_request_is_lost_or_repeated(packed: bool) -> Result<()> {
    const KILLS: u64 = 10;
    /// Completions between two ends of the back end.
    const BETWEEN: u64 = 300;
    let folder = tempfile::tempdir()?;
    std::fs::File::create(folder.path().join("disk"))?.set_len(BLOCKS * u64::from(BLOCK))?;
    let mut back_end = BackEnd::start(folder.path())?;
    let began = Instant::now();
    let socket = folder.path().join("socket");
    let patient = Options { reconnect: PATIENCE, ..Options::default() }.with_timeout(PATIENCE);
    // The file is there a moment before anybody listens.
    let device = loop {
        match VhostUser::connect(&socket, patient) {
            Ok(device) => break device,
            Err(error) => ensure!(began.elapsed() < PATIENCE, "the back end does not listen: {error}"),
        }
        std::thread::yield_now();
    };
    let options = wholebar::virtio::Options { packed, ..virtio::patient() };
    let blk = Blk::open(device, &BlkConfig { queues: 2, ..BlkConfig::default() }, options)?;
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    blk.attach(arena.clone())?;
    let pool = Pool::new(arena, 128, 4096, 4096)?;
    let mut queues = [blk.queue()?, blk.queue()?];
    // What was written to each block last, and the blocks that are being written.
    let (mut written, mut flying) = (vec![0u64; BLOCKS as usize], vec![false; BLOCKS as usize]);
    let (mut seed, mut done, mut kills) = (0, 0, 0);
    while kills < KILLS || flying.contains(&true) {
        for queue in &mut queues {
            while kills < KILLS && queue.in_flight() < 24 {
                let lba = fastrand::u64(..BLOCKS);
                if flying[lba as usize] {
                    continue;
                }
                let mut buf = pool.get_len(BLOCK).context("no buffer left")?;
                seed += 1;
                fill(&mut buf, lba, BLOCK, seed);
                let mut write = request(1, Op::Write { lba }, Data::One(buf));
                write.tag = lba;
                match queue.submit(write) {
                    Ok(()) => (written[lba as usize], flying[lba as usize]) = (seed, true),
                    Err(rejected) if matches!(rejected.why, Reject::Full) => break,
                    Err(rejected) => bail!("refused: {}", rejected.why),
                }
            }
            queue.ring();
        }
        if done / BETWEEN > kills && kills < KILLS {
            kills += 1;
            back_end.kill()?;
            back_end = BackEnd::start(folder.path())?;
        }
        for queue in &mut queues {
            let mut wrong = None;
            queue.poll_each(8, |completion| {
                done += 1;
                let known = flying.get_mut(completion.tag as usize).is_some_and(std::mem::take);
                if !known || completion.status != Status::Ok {
                    wrong = Some(format!("write {}: {:?}, in flight: {known}", completion.tag, completion.status));
                }
            });
            ensure!(wrong.is_none(), "{wrong:?} after {kills} kills, {:?}", blk.events().try_recv());
            ensure!(began.elapsed() < PATIENCE, "{done} completions, {kills} kills, then none: {:?}", queue.state());
        }
        std::thread::yield_now();
    }
    for (lba, seed) in (0..).zip(written).filter(|(_, seed)| *seed > 0) {
        let buf = pool.get_len(BLOCK).context("no buffer left")?;
        let data = ok(run(&mut queues[0], request(1, Op::Read { lba }, Data::One(buf)))?, "read")?;
        ensure!(
            data.bufs().iter().all(|buf| holds(buf, lba, BLOCK, seed)),
            "block {lba} is not as it was written last"
        );
    }
    ensure!(pool.available() == pool.capacity() && blk.quarantined() == 0, "a buffer is missing");
    ensure!(blk.events().is_empty(), "{:?}", blk.events().try_recv());
    Ok(())
}

#[test]
fn split_rings_go_on() -> Result<()> {
    no_request_is_lost_or_repeated(false)
}

#[test]
fn packed_rings_go_on() -> Result<()> {
    no_request_is_lost_or_repeated(true)
}
