//! TensorBoard's event files: records in TensorFlow's framing, each a protocol buffer `Event`.
//!
//! The messages are those of `tensorboard/compat/proto/event.proto` and `summary.proto` in TensorBoard's sources, with only the needed
//! fields.
//!
//! A resumed run starts a new file with a session start at its first step. TensorBoard then ignores that step and later ones in earlier
//! files.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Cursor, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use image::{ImageFormat, RgbImage};
use prost::Message as _;

use super::background::{BackgroundTracker, Body, DeliveryPolicy, Failure, Message, Sink, seconds};
use crate::train::folder::Status;

/// A tracker that writes event files for TensorBoard.
///
/// They are in `FOLDER/ID`, so that TensorBoard shows several runs together, or in `tensorboard` in the run's own folder.
pub fn tensorboard(folder: Option<PathBuf>) -> BackgroundTracker {
    BackgroundTracker::new("TensorBoard".into(), DeliveryPolicy::default(), move |run| {
        Box::new(EventFile {
            folder: folder
                .as_ref()
                .map_or_else(|| run.folder.join("tensorboard"), |folder| folder.join(run.id)),
            first: run.step.saturating_add(1),
            settings: table(run.settings),
            open: None,
        })
    })
}

/// TensorBoard's `Event`.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "EventContent", tags = "3, 5, 7")]
    what: Option<EventContent>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum EventContent {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// TensorBoard's `SessionLog`, here always with the status `START`.
#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

const START: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// TensorBoard's `Summary.Value`.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 4, 8")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
    #[prost(message, tag = "8")]
    Tensor(Text),
}

/// TensorBoard's `Summary.Image`.
#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

const RGB: i32 = 3;

/// TensorBoard's `SummaryMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

/// TensorBoard's `SummaryMetadata.PluginData`.
#[derive(Clone, PartialEq, prost::Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

/// TensorFlow's `TensorProto` with a single string.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    tensor_shape: Option<Scalar>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

const STRING: i32 = 7;

/// TensorFlow's `TensorShapeProto` without dimensions.
#[derive(Clone, PartialEq, prost::Message)]
struct Scalar {}

/// Formats settings as a Markdown table for the text panel.
fn table(settings: &[(String, String)]) -> String {
    let plain = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
    let rows = settings.iter().map(|(name, value)| format!("| {} | {} |\n", plain(name), plain(value)));
    ["| setting | value |\n| --- | --- |\n".to_owned()].into_iter().chain(rows).collect()
}

/// Appends a record: its length, a checksum of that, its bytes, a checksum of these; little-endian.
fn frame(record: &[u8], out: &mut Vec<u8>) {
    let length = (record.len() as u64).to_le_bytes();
    for part in [&length[..], record] {
        out.extend_from_slice(part);
        out.extend_from_slice(&masked(part).to_le_bytes());
    }
}

/// The masked checksum of `bytes` as TensorFlow stores it (`tsl/lib/hash/crc32c.h`): rotated and offset.
///
/// The checksum of data that contains checksums is thus still useful.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The event files of one run.
struct EventFile {
    folder: PathBuf,
    /// The first step of this process.
    first: u64,
    settings: String,
    open: Option<(File, u64)>,
}

impl EventFile {
    /// Appends all `records` or none.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let (file, length) = match &mut self.open {
            Some(open) => open,
            None => {
                fs::create_dir_all(&self.folder)?;
                let file = create(&self.folder)?;
                self.open.insert((file, 0))
            }
        };
        if let Err(e) = file.write_all(records) {
            // Readers stop at an incomplete record.
            file.set_len(*length)?;
            return Err(e);
        }
        *length += records.len() as u64;
        Ok(())
    }

    /// The records at the start of a file.
    fn head(&self) -> Vec<u8> {
        let now = SystemTime::now();
        let settings = Value {
            tag: "settings/text_summary".into(),
            metadata: Some(Metadata { plugin_data: Some(PluginData { plugin_name: "text".into() }) }),
            content: Some(Content::Tensor(Text {
                dtype: STRING,
                tensor_shape: Some(Scalar {}),
                string_val: vec![self.settings.clone().into_bytes()],
            })),
        };
        let mut out = Vec::new();
        for (step, what) in [
            (0, EventContent::FileVersion("brain.Event:2".into())),
            (self.first, EventContent::SessionLog(SessionLog { status: START })),
            (self.first, EventContent::Summary(Summary { value: vec![settings] })),
        ] {
            frame(&event(now, step, what), &mut out);
        }
        out
    }
}

impl Sink for EventFile {
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure> {
        let mut out = if self.open.is_none() { self.head() } else { Vec::new() };
        for Message { time, step, body } in queue.iter() {
            let value = match body {
                Body::Scalars(values) => values.iter().map(|(tag, value)| scalar(tag, *value)).collect(),
                Body::Picture(tag, picture) => picture_value(tag, picture).into_iter().collect(),
            };
            frame(&event(*time, *step, EventContent::Summary(Summary { value })), &mut out);
        }
        self.append(&out).map_err(|e| Failure::Passing(format!("{}: {e}", self.folder.display())))?;
        queue.clear();
        Ok(())
    }

    fn close(&mut self, _status: Status) -> Result<(), Failure> {
        let synced = self.open.as_ref().map_or(Ok(()), |(file, _)| file.sync_all());
        synced.map_err(|e| Failure::Passing(format!("{}: {e}", self.folder.display())))
    }
}

fn event(time: SystemTime, step: u64, what: EventContent) -> Vec<u8> {
    let step = i64::try_from(step).unwrap_or(i64::MAX);
    Event { wall_time: seconds(time), step, what: Some(what) }.encode_to_vec()
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.to_owned(), metadata: None, content: Some(Content::SimpleValue(value as f32)) }
}

/// The summary value of an image; `None` if it cannot be encoded as PNG, as without pixels.
fn picture_value(tag: &str, picture: &RgbImage) -> Option<Value> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).ok()?;
    let image = Image {
        height: picture.height() as i32,
        width: picture.width() as i32,
        colorspace: RGB,
        encoded_image_string: png.into_inner(),
    };
    Some(Value { tag: tag.to_owned(), metadata: None, content: Some(Content::Image(image)) })
}

/// Creates a new file in `folder`.
///
/// TensorBoard reads files in the order of their names, which start with a time. So a newer file always gets a later time, even within one
/// second or after the clock was set back.
fn create(folder: &Path) -> io::Result<File> {
    const PREFIX: &str = "events.out.tfevents.";
    let time = |entry: io::Result<fs::DirEntry>| -> Option<u64> {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
    };
    let newest = fs::read_dir(folder)?.filter_map(time).max();
    let now = seconds(SystemTime::now()) as u64;
    let time = newest.map_or(now, |newest| now.max(newest.saturating_add(1)));
    let path = folder.join(format!("{PREFIX}{time:010}.tiny-cats.{}", std::process::id()));
    OpenOptions::new().create_new(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::{RunInfo, Tracker};

    /// Parses the events of a file and checks every checksum.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let (record, after) = rest[12..].split_at(length);
            for (part, sum) in [(&rest[..8], &rest[8..12]), (record, &after[..4])] {
                assert_eq!(masked(part).to_le_bytes(), sum);
            }
            events.push(Event::decode(record).unwrap());
            rest = &after[4..];
        }
        events
    }

    fn run(folder: &Path, step: u64, steps: std::ops::RangeInclusive<u64>) {
        let mut tracker = tensorboard(None);
        let settings = [("a|b".to_owned(), "1\n2".to_owned())];
        tracker.begin(&RunInfo { id: "x", folder, step, settings: &settings });
        for step in steps {
            tracker.scalars(step, &[("loss", 1.0 / step as f64), ("lr", f64::NAN)]);
        }
        tracker.picture(step + 1, "samples", &RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3])));
        tracker.end(Status::Finished);
        assert_eq!(tracker.dropped(), 0);
    }

    #[test]
    fn events_are_read_as_they_were_written_and_a_resumed_run_begins_a_later_file() {
        // TensorFlow's own test of this checksum: crc32c of 32 zero bytes is 0x8a9136aa.
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0, 1..=20);
        run(dir.path(), 10, 11..=30);
        let mut files: Vec<_> =
            fs::read_dir(dir.path().join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2);
        for (path, first, steps) in [(&files[0], 1, 1..=20), (&files[1], 11, 11..=30)] {
            let events = events(path);
            assert_eq!(events[0].what, Some(EventContent::FileVersion("brain.Event:2".into())));
            let start = EventContent::SessionLog(SessionLog { status: START });
            assert_eq!((events[1].step, &events[1].what), (first, &Some(start)));
            let told = &events[3..events.len() - 1];
            assert_eq!(told.iter().map(|e| e.step).collect::<Vec<_>>(), steps.collect::<Vec<_>>());
            for event in told {
                let Some(EventContent::Summary(Summary { value })) = &event.what else { panic!("{event:?}") };
                assert_eq!(value[0].content, Some(Content::SimpleValue((1.0 / event.step as f64) as f32)));
                assert!(matches!(value[1].content, Some(Content::SimpleValue(v)) if v.is_nan()));
            }
        }
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_held_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tensorboard"), "a file in the folder's place").unwrap();
        let mut tracker = tensorboard(None);
        tracker.begin(&RunInfo { id: "x", folder: dir.path(), step: 0, settings: &[] });
        tracker.scalars(1, &[("loss", 1.0)]);
        let start = std::time::Instant::now();
        tracker.end(Status::Failed);
        assert!(start.elapsed() < DeliveryPolicy::default().end);
    }
}
