//! Draws a run's `loss.png` and `samples.png` in its own thread, so that no step waits for an image.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    thread,
    time::Duration,
};

use image::RgbImage;
use tiny_cats_export::write_png;

use crate::{
    plot::{LossCurve, Strip},
    train::metrics::METRICS,
};

/// The maximum time that the end of a run waits for its plots.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The plots to draw.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlotRequest {
    /// True for the loss curve.
    pub curve: bool,
    /// The step of the newest grid, to draw the strip of sample grids.
    pub samples: Option<u64>,
}

/// The handle of the thread that draws.
pub struct PlotThread {
    requests: SyncSender<PlotRequest>,
    done: Receiver<()>,
}

impl PlotThread {
    /// Starts the thread for the run `id` in `folder`, which continues after `step`. Returns `None`, with a warning, if no thread can be
    /// started.
    pub fn start(folder: &Path, id: &str, step: u64) -> Option<Self> {
        let (requests, receive) = sync_channel(16);
        let (ended, done) = channel();
        let mut easel = Plotter {
            curve: LossCurve::new(&folder.join(METRICS)),
            strip: Strip::new(&folder.join("samples")),
            folder: folder.to_owned(),
            id: id.to_owned(),
            newest: step,
            warned: false,
        };
        let work = move || {
            easel.work(&receive);
            let _ = ended.send(());
        };
        match thread::Builder::new().name("painter".into()).spawn(work) {
            Ok(_) => Some(Self { requests, done }),
            Err(e) => {
                tracing::warn!("{id}: {e}: its course is not drawn");
                None
            }
        }
    }

    /// Requests plots. Requests that exceed the queue are dropped, since later plots show the same.
    pub fn draw(&self, what: PlotRequest) {
        let _ = self.requests.try_send(what);
    }

    /// Waits for the last plots, for at most 5 s.
    pub fn finish(self) {
        drop(self.requests);
        if self.done.recv_timeout(FINISH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "the last pictures of the run's course are not drawn after {} s",
                FINISH_TIMEOUT.as_secs()
            );
        }
    }
}

/// The plots and their state.
struct Plotter {
    curve: LossCurve,
    strip: Strip,
    folder: PathBuf,
    id: String,
    /// The step of this run's newest grid.
    newest: u64,
    warned: bool,
}

impl Plotter {
    fn work(&mut self, requests: &Receiver<PlotRequest>) {
        while let Ok(first) = requests.recv() {
            let all = requests.try_iter().fold(first, |all, next| PlotRequest {
                curve: all.curve || next.curve,
                samples: next.samples.or(all.samples),
            });
            self.draw(all);
        }
        self.draw(PlotRequest { curve: true, samples: Some(self.newest) });
    }

    fn draw(&mut self, what: PlotRequest) {
        if what.curve {
            let picture = self.curve.read().map(|()| self.curve.picture(&self.id));
            self.show("loss.png", picture);
        }
        if let Some(step) = what.samples {
            self.newest = self.newest.max(step);
            let picture = self.strip.picture(self.newest);
            self.show("samples.png", picture);
        }
    }

    fn show(&mut self, name: &str, picture: std::io::Result<Option<RgbImage>>) {
        let path = self.folder.join(name);
        let written =
            picture.and_then(|picture| picture.map_or(Ok(()), |picture| write_png(&path, &picture)));
        if let Err(e) = written
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("{}: {e}: it is not drawn, and training goes on", path.display());
        }
    }
}
