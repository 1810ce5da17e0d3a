//! Tests with pickles that PyTorch does not write.

use std::{fs::File, io::Read};

use super::{
    node::MAX_VALUES,
    pickle::{MAX_MEMO_READS, parse},
    value::Value,
};
use crate::checkpoint::ErrorKind;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/torch/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    let folder = name.trim_end_matches(".pt");
    zip.by_name(&format!("{folder}/data.pkl")).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bypasses the archive's checksums, which would reject the altered files first.
#[test]
fn altered_pickles_do_not_panic() {
    for (name, step) in
        [("training.pt", 1), ("views.pt", 1), ("values.pt", 1), ("objects-2.pt", 127), ("objects-5.pt", 127)]
    {
        let good = fixture(name);
        assert!(parse(&good).is_ok());
        for i in (0..good.len()).step_by(step) {
            assert!(parse(&good[..i]).is_err(), "{name} cut to {i} bytes");
            for byte in (0..=255).step_by(17) {
                let mut bad = good.clone();
                bad[i] = byte;
                if let Ok((value, _)) = parse(&bad) {
                    value.tensors().iter().for_each(|(_, t)| drop(t.bytes_needed()));
                }
            }
        }
    }
}

fn assert_rejected(pickle: &[u8], expected: &str) {
    match parse(pickle) {
        Err(ErrorKind::Malformed { message, .. }) => {
            assert!(message.contains(expected), "{message}, expected {expected}")
        }
        other => panic!("{other:?}, expected {expected}"),
    }
}

#[test]
fn endless_and_oversized_pickles_are_rejected() {
    assert_rejected(b"\x80\x02]q\x00h\x00a.", "nested more than");
    let deep = [vec![b']'; 1000], vec![b'a'; 999], vec![b'.']].concat();
    assert_rejected(&deep, "nested more than");
    // A list of two references to a list of two references, and so on: a million values from every 20 doublings.
    let mut doubling = b"]".to_vec();
    for i in 0..50u8 {
        doubling.extend([b'q', i, b']', b'(', b'h', i, b'h', i, b'e']);
    }
    doubling.push(b'.');
    assert_rejected(&doubling, "values");
    assert_rejected(&[vec![b'N'; MAX_VALUES + 1], vec![b'.']].concat(), "values");
    assert_rejected(b"X\xff\xff\xff\xffa.", "too early");
    assert_rejected(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "too early");
    assert_rejected(b"\x8a\x09123456789.", "64 bits");
    assert_rejected(&[vec![b'('; MAX_VALUES + 1], vec![b'.']].concat(), "open lists");
    assert_rejected(&[&b"Nq\x00"[..], &b"h\x00".repeat(MAX_MEMO_READS + 1), b"."].concat(), "references");
    let text = [b"X\x00\x00\x10\x00".to_vec(), vec![b'a'; 1 << 20], b"q\x00].".to_vec()].concat();
    assert!(parse(&text).is_ok());
    let repeated = [&text[..text.len() - 2], b"](", &b"h\x00".repeat(100)[..], b"e."].concat();
    assert_rejected(&repeated, "text");
}

/// No function is called, and no weights are read from the result of a call.
#[test]
fn root_objects_of_unknown_classes_are_rejected_by_name() {
    assert_rejected(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "an object of os.system");
    assert_rejected(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "an object of builtins.eval");
    assert_rejected(b"ctorch\nload\n.", "an object of torch.load");
    assert_rejected(b"ctorch\nFloatStorage\n)R.", "an object of torch.FloatStorage");
    assert_rejected(b"K\x01)R.", "a call of an integer");
    assert_rejected(b"cmodels\nNet\nK\x01R.", "expected a tuple");
    assert_rejected(b"(o.", "a call without a function");
    for incomplete in
        [b"\x81.", b"R.", b"o.", b"0.", b"1.", b"2.", b"\x90.", b"\x91.", b"l.", b"d.", b"b.", b"Q."]
    {
        assert!(parse(incomplete).is_err(), "{incomplete:?}");
    }
    assert_rejected(b"\x82\x01.", "0x82");
    assert_rejected(b"]N\x90.", "a list without a start");
    assert_rejected(b"](N\x90.", "expected a set");
    // The error cuts the name and escapes its control characters.
    let name = format!("c{}\nx\x1b[31m\n)R.", "m".repeat(1 << 20));
    let problem = parse(name.as_bytes()).unwrap_err().to_string();
    assert!(problem.len() < 400 && !problem.contains('\x1b'), "{problem}");
}

fn object(pickle: &[u8]) -> (Value, Vec<String>) {
    let (root, names) = parse(pickle).unwrap();
    let Value::List(items) = root else { panic!("{root:?}") };
    (items[0].clone(), names)
}

fn attributes(pickle: &[u8]) -> (String, serde_json::Value) {
    let (value, names) = object(pickle);
    let Value::Object { ref class, .. } = value else { panic!("{value:?}") };
    assert_eq!(names, std::slice::from_ref(class));
    (class.clone(), value.to_json())
}

/// Covers the ways to make the same object in protocols 2 to 5.
#[test]
fn objects_of_unknown_classes_have_class_and_attributes() {
    let expected = ("argparse.Namespace".to_owned(), serde_json::json!({"depth": 12}));
    let name = b"cargparse\nNamespace\n";
    let named = b"\x8c\x08argparse\x8c\x09Namespace\x93";
    let state = b"}X\x05\x00\x00\x00depthK\x0cs";
    let join = |parts: &[&[u8]]| [b"]", &parts.concat()[..], b"a."].concat();
    for pickle in [
        join(&[name, b")R", state, b"b"]),
        join(&[name, b")\x81", state, b"b"]),
        join(&[named, b")}\x92", state, b"b"]),
        join(&[b"(", name, b"o", state, b"b"]),
        join(&[b"(iargparse\nNamespace\n", state, b"b"]),
        // With `__slots__`, with items, and from the result of a call.
        join(&[name, b")R", b"N", state, b"\x86b"]),
        join(&[name, b")RX\x05\x00\x00\x00depthK\x0cs"]),
        join(&[name, b")R)R(X\x05\x00\x00\x00depthK\x0cu"]),
        // Values that are pushed and discarded.
        join(&[b"N0(0(NN1N20", b"0", name, b")R", state, b"b"]),
    ] {
        assert_eq!(attributes(&pickle), expected, "{:?}", String::from_utf8_lossy(&pickle));
    }
}

#[test]
fn cyclic_and_large_objects_have_no_attributes() {
    let start = b"]cm\nNode\n)Rq\x00";
    // An object that is its own parent: only the name of the inner object is kept.
    let cyclic = [&start[..], b"}X\x06\x00\x00\x00parenth\x00sba."].concat();
    assert_eq!(attributes(&cyclic), ("m.Node".into(), serde_json::json!({"parent": null})));
    // A list that contains itself.
    let self_containing = [&start[..], b"}X\x01\x00\x00\x00l]q\x01h\x01asba."].concat();
    assert_eq!(attributes(&self_containing).1, serde_json::Value::Null);
    let large = [&start[..], b"}X\x01\x00\x00\x00l](", &[b'N'; 1 << 17], b"esba."].concat();
    assert_eq!(attributes(&large).1, serde_json::Value::Null);
}

#[test]
fn unsupported_python_values_are_skipped() {
    for pickle in [
        &b"]\x8f(K\x01K\x02\x90a."[..],
        b"](K\x01\x91a.",
        b"]C\x02\xff\xfea.",
        b"]\x96\x02\x00\x00\x00\x00\x00\x00\x00\xff\xfea.",
        b"]X\x02\x00\x00\x00\xff\xfea.",
        b"]\x8a\x09123456789a.",
        b"]\x8b\x09\x00\x00\x00123456789a.",
        b"]X\x01\x00\x00\x00aQa.",
        b"](K\x01tQa.",
    ] {
        let (value, names) = object(pickle);
        assert!(matches!(value, Value::Object { .. }) && names.is_empty(), "{value:?}");
        assert_eq!(value.to_json(), serde_json::Value::Null);
    }
    assert_eq!(object(b"](K\x01K\x02la.").0.to_json(), serde_json::json!([1, 2]));
    assert_eq!(object(b"](U\x01aK\x02da.").0.to_json(), serde_json::json!({"a": 2}));
}

/// If each reference to a large value took time in proportion to its size, this would take hours.
#[test]
fn large_shared_values_are_not_copied_per_reference() {
    let tuple = [&b"("[..], &[b'N'; 1 << 16], b"tq\x00"].concat();
    let repeat = |part: &[u8]| [&tuple[..], b"](", &part.repeat(1 << 17), b"e."].concat();
    for pickle in [
        repeat(b"ctorch\nSize\nh\x00\x85R"),
        repeat(b"ctorch._utils\n_rebuild_qtensor\nh\x00R"),
        repeat(b"}h\x00b"),
        repeat(b"cm\nN\n)Rh\x00b"),
    ] {
        assert!(parse(&pickle).is_ok());
    }
}
