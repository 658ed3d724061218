//! A thread that hears what happens to an interface: its link comes or goes, or it is removed.

use super::netlink::{self, Change, Changes};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use wholebar_core::channel::Sender;
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::irq::EventFd;
use wholebar_core::net::{Event, Link};
use wholebar_core::reset::{Domain, End};

/// What is known of an interface.
#[derive(Debug)]
pub(super) struct State {
    pub index: u32,
    pub name: String,
    /// The queues' resets, which end when the interface is gone.
    pub domain: Domain,
    pub link: AtomicBool,
    pub link_changes: AtomicU64,
    pub events: Sender<Event>,
}

impl State {
    pub fn link(&self) -> Link {
        // Relaxed: nothing else is read by it. Which speed it has, few of the interfaces that are not a card's say.
        Link { up: self.link.load(Ordering::Relaxed), ..Link::default() }
    }

    pub fn tell(&self, event: impl Into<Event>) {
        // Where nobody takes events, further ones are dropped.
        let _ = self.events.try_send(event.into());
    }

    fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::Relaxed) != up {
            self.link_changes.fetch_add(1, Ordering::Relaxed);
            self.tell(Event::Link(self.link()));
        }
    }

    fn gone(&self) {
        if self.domain.ended().is_none() {
            let why = format!("the interface {} was removed", self.name);
            // Nothing of the kernel's writes buffers.
            self.domain.end(End { gone: true, harmless: true, why: why.clone() });
            self.set_link(false);
            self.tell(DeviceEvent::Ended { why });
        }
    }

    fn change(&self, change: Change) {
        match change {
            Change::Now(now) if now.index == self.index => self.set_link(now.up && now.carrier),
            Change::Gone { index } if index == self.index => self.gone(),
            _ => {}
        }
    }

    /// As it is now: some of what happened was lost.
    fn refresh(&self) -> io::Result<()> {
        let all = netlink::interfaces()?;
        match all.into_iter().find(|interface| interface.index == self.index) {
            Some(now) => self.change(Change::Now(now)),
            None => self.gone(),
        }
        Ok(())
    }
}

/// The thread, which ends with this.
#[derive(Debug)]
pub(super) struct Watch {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches from here on; what had happened before is looked up once.
    pub fn start(state: Arc<State>) -> wholebar_core::Result<Self> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |cause| wholebar_core::Error::Io { what, cause }
        };
        let changes = Changes::new().map_err(failed("listening to what happens to interfaces"))?;
        state.refresh().map_err(failed("asking the kernel for its interfaces"))?;
        let end = Arc::new(EventFd::new()?);
        let ending = end.clone();
        let run = move || {
            if let Err(error) = run(&state, &changes, &ending) {
                tracing::error!(%error, interface = state.name, "what happens to the interface is not heard any more");
            }
        };
        let thread = std::thread::Builder::new().name("wholebar-kernel".to_owned()).spawn(run);
        Ok(Self { end, thread: Some(thread.map_err(failed("starting a thread"))?) })
    }
}

fn run(state: &State, changes: &Changes, end: &EventFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(changes, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if end.take() > 0 {
            return Ok(());
        }
        if !changes.take(&mut |change| state.change(change))? {
            state.refresh()?;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
