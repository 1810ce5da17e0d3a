//! Digests in files, which detect altered and damaged files, and the keys of our entries in a file's metadata.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::hex;

/// The key of a [`ModelMeta`](crate::ModelMeta) as JSON: in safetensors' metadata, in a PyTorch file's dictionary, in ONNX's `metadata_props`.
pub const META_KEY: &str = "tiny-cats";

/// The key of an ONNX file's `metadata_props` that holds its digest: SHA-256 in hexadecimal, over its weights, its graph and its
/// [`META_KEY`] entry.
pub const DIGEST_KEY: &str = "tiny-cats.sha256";

/// The error message for a file whose digest does not match.
pub const CHECKSUM_MISMATCH: &str =
    "the checksum does not match the content: the file was altered or damaged";

/// The result of comparing a file's contents with the digest that the file carries. A file whose digest does not match is never
/// loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// The file carries a digest, and its contents match it.
    Verified,
    /// The file carries no digest, so damage to its weights may go unnoticed.
    Unchecked,
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Verified => "verified",
            Self::Unchecked => "unchecked",
        })
    }
}

/// The checksum of a safetensors file, which its header's metadata holds under [`KEY`](Self::KEY). It is SHA-256 of all bytes of
/// the file, with the checksum's own 64 hexadecimal digits replaced by zeros.
#[derive(Clone, Debug)]
pub struct Checksum(Sha256);

impl Checksum {
    /// The key in the header's metadata.
    pub const KEY: &str = "sha256";

    /// The value under [`KEY`](Self::KEY) while the checksum is computed.
    pub const PLACEHOLDER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    /// Starts a checksum with the eight bytes of the header's length and the header. `None` if the header has no entry for the digits.
    pub fn begin(header: &[u8]) -> Option<Self> {
        let offset = Self::digits_offset(header)?;
        let (before, after) = header.split_at_checked(offset)?;
        let after = after.get(Self::PLACEHOLDER.len()..)?;
        let mut hash = Sha256::new();
        hash.update((header.len() as u64).to_le_bytes());
        hash.update(before);
        hash.update(Self::PLACEHOLDER);
        hash.update(after);
        Some(Self(hash))
    }

    /// Adds the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hexadecimal digits. All bytes of the file must have been added.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }

    /// Returns the offset of the digits in the header. Quotes inside JSON strings are escaped, so the key matches nowhere else.
    pub fn digits_offset(header: &[u8]) -> Option<usize> {
        let key = format!("\"{}\":\"", Self::KEY);
        Some(header.windows(key.len()).position(|w| w == key.as_bytes())? + key.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_covers_all_bytes_except_its_own_digits() {
        let header =
            |digits: &str, note: &str| format!(r#"{{"__metadata__":{{"n":"{note}","sha256":"{digits}"}}}}"#);
        let sum = |header: &str, data: &[u8]| {
            let mut sum = Checksum::begin(header.as_bytes()).unwrap();
            data.chunks(2).for_each(|part| sum.update(part));
            sum.finish()
        };
        let empty = header(Checksum::PLACEHOLDER, "a");
        let digits = sum(&empty, b"data");
        assert_eq!(digits, sum(&header(&digits, "a"), b"data"));
        assert_eq!(
            digits,
            hex(&Sha256::digest(
                [&(empty.len() as u64).to_le_bytes()[..], empty.as_bytes(), b"data"].concat()
            ))
        );
        assert_ne!(digits, sum(&empty, b"Data"));
        assert_ne!(digits, sum(&header(Checksum::PLACEHOLDER, "b"), b"data"));
        for broken in ["{}", r#"{"sha256":"00"}"#, ""] {
            assert!(Checksum::begin(broken.as_bytes()).is_none(), "{broken}");
        }
    }
}
