//! Plots `loss.png` and `samples.png` of a run in a separate thread, so that training does not wait for them.

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

/// A request to draw plots.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlotRequest {
    /// True to draw the loss curve.
    pub curve: bool,
    /// The step of the newest grid, to draw the strip of sample grids.
    pub samples: Option<u64>,
}

/// The handle of the thread that draws the plots.
pub struct PlotThread {
    requests: SyncSender<PlotRequest>,
    done: Receiver<()>,
}

impl PlotThread {
    /// Starts the thread for the run `id` in `folder`, which continues after `step`. Returns `None`, with a warning, if no thread can be
    /// started.
    pub fn start(folder: &Path, id: &str, step: u64) -> Option<Self> {
        let (requests, receiver) = sync_channel(16);
        let (ended, done) = channel();
        let mut plotter = Plotter {
            curve: LossCurve::new(&folder.join(METRICS)),
            strip: Strip::new(&folder.join("samples")),
            folder: folder.to_owned(),
            id: id.to_owned(),
            newest_step: step,
            has_warned: false,
        };
        let work = move || {
            plotter.work(&receiver);
            let _ = ended.send(());
        };
        match thread::Builder::new().name("plots".into()).spawn(work) {
            Ok(_) => Some(Self { requests, done }),
            Err(e) => {
                tracing::warn!("{id}: {e}; loss.png and samples.png are not written");
                None
            }
        }
    }

    /// Requests plots. A request that does not fit into the queue is dropped, since later plots include its data.
    pub fn request_plots(&self, request: PlotRequest) {
        let _ = self.requests.try_send(request);
    }

    /// Waits for the last plots, for at most 5 s.
    pub fn finish(self) {
        drop(self.requests);
        if self.done.recv_timeout(FINISH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the last plots of the run are not finished after {} s", FINISH_TIMEOUT.as_secs());
        }
    }
}

/// The plots and their state.
struct Plotter {
    curve: LossCurve,
    strip: Strip,
    folder: PathBuf,
    id: String,
    /// The step of the newest sample grid.
    newest_step: u64,
    has_warned: bool,
}

impl Plotter {
    fn work(&mut self, requests: &Receiver<PlotRequest>) {
        while let Ok(first) = requests.recv() {
            let merged = requests.try_iter().fold(first, |merged, next| PlotRequest {
                curve: merged.curve || next.curve,
                samples: next.samples.or(merged.samples),
            });
            self.draw(merged);
        }
        self.draw(PlotRequest { curve: true, samples: Some(self.newest_step) });
    }

    fn draw(&mut self, request: PlotRequest) {
        if request.curve {
            let image = self.curve.read().map(|()| self.curve.render(&self.id));
            self.write_plot("loss.png", image);
        }
        if let Some(step) = request.samples {
            self.newest_step = self.newest_step.max(step);
            let image = self.strip.render(self.newest_step);
            self.write_plot("samples.png", image);
        }
    }

    fn write_plot(&mut self, name: &str, image: std::io::Result<Option<RgbImage>>) {
        let path = self.folder.join(name);
        let result = image.and_then(|image| image.map_or(Ok(()), |image| write_png(&path, &image)));
        if let Err(e) = result
            && !std::mem::replace(&mut self.has_warned, true)
        {
            tracing::warn!("{}: {e}; the plot is not written", path.display());
        }
    }
}
