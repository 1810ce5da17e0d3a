//! TensorBoard's event files: records in TensorFlow's framing, each a protocol buffer `Event`.
//!
//! The messages are defined in `tensorboard/compat/proto/event.proto` and `summary.proto` of TensorBoard's sources; only the needed fields
//! are included.
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

use super::background::{BackgroundTracker, DeliveryPolicy, Failure, Message, MessageBody, Sink, seconds};
use crate::train::folder::Status;

/// Creates a tracker that writes event files for TensorBoard.
///
/// They are in `FOLDER/ID`, so that TensorBoard shows several runs together; without `folder`, in `tensorboard` in the run's folder.
pub fn tensorboard(folder: Option<PathBuf>) -> BackgroundTracker {
    BackgroundTracker::new("TensorBoard".into(), DeliveryPolicy::default(), move |run| {
        Box::new(EventFile {
            folder: folder
                .as_ref()
                .map_or_else(|| run.folder.join("tensorboard"), |folder| folder.join(run.id)),
            first_step: run.step.saturating_add(1),
            settings: settings_table(run.settings),
            open_file: None,
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
    content: Option<EventContent>,
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
fn settings_table(settings: &[(String, String)]) -> String {
    let escape_cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
    let rows =
        settings.iter().map(|(name, value)| format!("| {} | {} |\n", escape_cell(name), escape_cell(value)));
    ["| setting | value |\n| --- | --- |\n".to_owned()].into_iter().chain(rows).collect()
}

/// Appends a record: its length, the checksum of the length, its bytes, and their checksum; little-endian.
fn append_record(record: &[u8], output: &mut Vec<u8>) {
    let length = (record.len() as u64).to_le_bytes();
    for part in [&length[..], record] {
        output.extend_from_slice(part);
        output.extend_from_slice(&masked_crc(part).to_le_bytes());
    }
}

/// The masked CRC-32C of `bytes`, rotated and offset as in TensorFlow (`tsl/lib/hash/crc32c.h`).
///
/// The mask avoids the checksum of data that contains its own checksum.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The event file of a run.
struct EventFile {
    folder: PathBuf,
    /// The first step of this process.
    first_step: u64,
    /// The settings as a Markdown table.
    settings: String,
    /// The file and its length, once it is created.
    open_file: Option<(File, u64)>,
}

impl EventFile {
    /// Appends `records` completely or not at all.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let (file, length) = match &mut self.open_file {
            Some(open_file) => open_file,
            None => {
                fs::create_dir_all(&self.folder)?;
                let file = create_file(&self.folder)?;
                self.open_file.insert((file, 0))
            }
        };
        if let Err(e) = file.write_all(records) {
            // An incomplete record is removed, since readers would stop at it.
            file.set_len(*length)?;
            return Err(e);
        }
        *length += records.len() as u64;
        Ok(())
    }

    /// The first records of a file.
    fn header_records(&self) -> Vec<u8> {
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
        let mut output = Vec::new();
        for (step, content) in [
            (0, EventContent::FileVersion("brain.Event:2".into())),
            (self.first_step, EventContent::SessionLog(SessionLog { status: START })),
            (self.first_step, EventContent::Summary(Summary { value: vec![settings] })),
        ] {
            append_record(&event(now, step, content), &mut output);
        }
        output
    }
}

impl Sink for EventFile {
    fn deliver(&mut self, queue: &mut VecDeque<Message>) -> Result<(), Failure> {
        let mut output = if self.open_file.is_none() { self.header_records() } else { Vec::new() };
        for Message { time, step, body } in queue.iter() {
            let value = match body {
                MessageBody::Scalars(values) => {
                    values.iter().map(|(tag, value)| scalar(tag, *value)).collect()
                }
                MessageBody::Image(tag, image) => image_value(tag, image).into_iter().collect(),
            };
            append_record(&event(*time, *step, EventContent::Summary(Summary { value })), &mut output);
        }
        self.append(&output).map_err(|e| Failure::Transient(format!("{}: {e}", self.folder.display())))?;
        queue.clear();
        Ok(())
    }

    fn close(&mut self, _status: Status) -> Result<(), Failure> {
        let result = self.open_file.as_ref().map_or(Ok(()), |(file, _)| file.sync_all());
        result.map_err(|e| Failure::Transient(format!("{}: {e}", self.folder.display())))
    }
}

fn event(time: SystemTime, step: u64, content: EventContent) -> Vec<u8> {
    let step = i64::try_from(step).unwrap_or(i64::MAX);
    Event { wall_time: seconds(time), step, content: Some(content) }.encode_to_vec()
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.to_owned(), metadata: None, content: Some(Content::SimpleValue(value as f32)) }
}

/// The summary value of an image; `None` if it cannot be encoded as PNG, such as an image without pixels.
fn image_value(tag: &str, source: &RgbImage) -> Option<Value> {
    let mut png = Cursor::new(Vec::new());
    source.write_to(&mut png, ImageFormat::Png).ok()?;
    let image = Image {
        height: source.height() as i32,
        width: source.width() as i32,
        colorspace: RGB,
        encoded_image_string: png.into_inner(),
    };
    Some(Value { tag: tag.to_owned(), metadata: None, content: Some(Content::Image(image)) })
}

/// Creates a new file in `folder`.
///
/// TensorBoard reads files in the order of their names, which contain a time. So a newer file always gets a later time, even within the
/// same second or after the clock was set back.
fn create_file(folder: &Path) -> io::Result<File> {
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
        let mut remaining = &bytes[..];
        let mut events = Vec::new();
        while !remaining.is_empty() {
            let length = u64::from_le_bytes(remaining[..8].try_into().unwrap()) as usize;
            let (record, after) = remaining[12..].split_at(length);
            for (part, sum) in [(&remaining[..8], &remaining[8..12]), (record, &after[..4])] {
                assert_eq!(masked_crc(part).to_le_bytes(), sum);
            }
            events.push(Event::decode(record).unwrap());
            remaining = &after[4..];
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
        tracker.image(step + 1, "samples", &RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3])));
        tracker.end(Status::Finished);
        assert_eq!(tracker.dropped(), 0);
    }

    #[test]
    fn events_are_read_as_written_and_a_resumed_run_starts_a_later_file() {
        // From TensorFlow's test of this checksum: the CRC-32C of 32 zero bytes is 0x8a9136aa.
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0, 1..=20);
        run(dir.path(), 10, 11..=30);
        let mut files: Vec<_> =
            fs::read_dir(dir.path().join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2);
        for (path, first_step, steps) in [(&files[0], 1, 1..=20), (&files[1], 11, 11..=30)] {
            let events = events(path);
            assert_eq!(events[0].content, Some(EventContent::FileVersion("brain.Event:2".into())));
            let start = EventContent::SessionLog(SessionLog { status: START });
            assert_eq!((events[1].step, &events[1].content), (first_step, &Some(start)));
            let scalar_events = &events[3..events.len() - 1];
            assert_eq!(scalar_events.iter().map(|e| e.step).collect::<Vec<_>>(), steps.collect::<Vec<_>>());
            for event in scalar_events {
                let Some(EventContent::Summary(Summary { value })) = &event.content else {
                    panic!("{event:?}")
                };
                assert_eq!(value[0].content, Some(Content::SimpleValue((1.0 / event.step as f64) as f32)));
                assert!(matches!(value[1].content, Some(Content::SimpleValue(v)) if v.is_nan()));
            }
        }
    }

    #[test]
    fn an_unwritable_folder_does_not_block_the_run() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tensorboard"), "a file instead of a folder").unwrap();
        let mut tracker = tensorboard(None);
        tracker.begin(&RunInfo { id: "x", folder: dir.path(), step: 0, settings: &[] });
        tracker.scalars(1, &[("loss", 1.0)]);
        let start = std::time::Instant::now();
        tracker.end(Status::Failed);
        assert!(start.elapsed() < DeliveryPolicy::default().end);
    }
}
