//! Tests with pickles that PyTorch does not write.

use std::{fs::File, io::Read};

use super::{
    pickle::{MAX_MEMO_READS, MAX_VALUES, parse},
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
fn no_altered_pickle_makes_the_machine_panic() {
    for (name, every) in
        [("training.pt", 1), ("views.pt", 1), ("values.pt", 1), ("objects-2.pt", 127), ("objects-5.pt", 127)]
    {
        let good = fixture(name);
        assert!(parse(&good).is_ok());
        for i in (0..good.len()).step_by(every) {
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

fn refused(pickle: &[u8], why: &str) {
    match parse(pickle) {
        Err(ErrorKind::Malformed { message, .. }) => {
            assert!(message.contains(why), "{message}, expected {why}")
        }
        other => panic!("{other:?}, expected {why}"),
    }
}

#[test]
fn what_would_not_end_or_not_fit_is_refused() {
    refused(b"\x80\x02]q\x00h\x00a.", "nested more than");
    let deep = [vec![b']'; 1000], vec![b'a'; 999], vec![b'.']].concat();
    refused(&deep, "nested more than");
    // A list of two references to a list of two references, and so on: a million values from every 20 doublings.
    let mut laughs = b"]".to_vec();
    for i in 0..50u8 {
        laughs.extend([b'q', i, b']', b'(', b'h', i, b'h', i, b'e']);
    }
    laughs.push(b'.');
    refused(&laughs, "values");
    refused(&[vec![b'N'; MAX_VALUES + 1], vec![b'.']].concat(), "values");
    refused(b"X\xff\xff\xff\xffa.", "too early");
    refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "too early");
    refused(b"\x8a\x09123456789.", "64 bits");
    refused(&[vec![b'('; MAX_VALUES + 1], vec![b'.']].concat(), "lists begun");
    refused(&[&b"Nq\x00"[..], &b"h\x00".repeat(MAX_MEMO_READS + 1), b"."].concat(), "mentions");
    let text = [b"X\x00\x00\x10\x00".to_vec(), vec![b'a'; 1 << 20], b"q\x00].".to_vec()].concat();
    assert!(parse(&text).is_ok());
    let repeated = [&text[..text.len() - 2], b"](", &b"h\x00".repeat(100)[..], b"e."].concat();
    refused(&repeated, "text");
}

/// Nothing is called, and no weights are read from the result of a call.
#[test]
fn a_file_that_is_an_object_of_an_unknown_class_is_refused_by_its_name() {
    refused(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "an object of os.system");
    refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "an object of builtins.eval");
    refused(b"ctorch\nload\n.", "an object of torch.load");
    refused(b"ctorch\nFloatStorage\n)R.", "an object of torch.FloatStorage");
    refused(b"K\x01)R.", "a call of a whole number");
    refused(b"cmodels\nNet\nK\x01R.", "expected a tuple");
    refused(b"(o.", "a call of nothing");
    for nothing in
        [b"\x81.", b"R.", b"o.", b"0.", b"1.", b"2.", b"\x90.", b"\x91.", b"l.", b"d.", b"b.", b"Q."]
    {
        assert!(parse(nothing).is_err(), "{nothing:?}");
    }
    refused(b"\x82\x01.", "0x82");
    refused(b"]N\x90.", "a list without a beginning");
    refused(b"](N\x90.", "expected a set");
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
fn objects_of_unknown_classes_keep_their_class_and_attributes() {
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
fn objects_that_refer_to_themselves_and_large_ones_have_no_attributes() {
    let start = b"]cm\nNode\n)Rq\x00";
    // An object that is its own parent: only the name of the inner one is kept.
    let circle = [&start[..], b"}X\x06\x00\x00\x00parenth\x00sba."].concat();
    assert_eq!(attributes(&circle), ("m.Node".into(), serde_json::json!({"parent": null})));
    // A list that contains itself.
    let endless = [&start[..], b"}X\x01\x00\x00\x00l]q\x01h\x01asba."].concat();
    assert_eq!(attributes(&endless).1, serde_json::Value::Null);
    let large = [&start[..], b"}X\x01\x00\x00\x00l](", &[b'N'; 1 << 17], b"esba."].concat();
    assert_eq!(attributes(&large).1, serde_json::Value::Null);
}

#[test]
fn values_of_python_that_are_of_no_interest_are_passed_over() {
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

/// If each reference to a large value took time by its size, this would take hours.
#[test]
fn a_large_value_is_not_copied_or_searched_as_often_as_it_is_mentioned() {
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
