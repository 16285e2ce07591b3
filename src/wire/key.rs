//! The pre-shared key that makes a process part of a chain.
//!
//! In: the text of a key file. Out: a [`Key`], the sealing and checking of handshake messages with it. Called by
//! [`super::key_file`] and [`super::handshake`]. Invariant: key bytes leave this module only through [`Key::to_text`]; no
//! error and no `Debug` output contains any.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

/// 256 bits, the security level of the HMAC-SHA256 it is used with (RFC 2104 section 3: not less than the hash's output).
pub const KEY_BYTES: usize = 32;

/// The whole output of HMAC-SHA256.
pub const MAC_BYTES: usize = 32;

/// The new key and the one that it replaces.
pub const KEYS_MAX: usize = 2;

/// The first word of a key file: says what the file is and which format it has.
const FORMAT: &str = "plait-key-1";

/// A pre-shared key. Share it between executors with an `Arc` instead of copying it.
pub struct Key([u8; KEY_BYTES]);

/// Tells keys apart without saying anything useful about them: the first bytes of a MAC over a constant. With two keys in
/// use (rotation) a server picks by it; and it turns a wrong key into a clear error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 4]);

/// A key file's text that is no key. The remedy is in the message because it is shown as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Nothing but white space.
    #[error("it is empty (make a key with `plait keygen FILE`)")]
    Empty,
    /// The first word is another one.
    #[error("it does not begin with `{FORMAT}`, so it is no key file (make one with `plait keygen FILE`)")]
    NotAKeyFile,
    /// Something follows the key.
    #[error(
        "a line of it has more than `{FORMAT} <64 hex digits>` (make a new one with `plait keygen FILE`)"
    )]
    TrailingText,
    /// More lines than a rotation needs.
    #[error("it has {keys} keys, more than {KEYS_MAX}: the new one and the old one")]
    TooMany {
        /// Lines found.
        keys: usize,
    },
    /// Not 64 digits.
    #[error(
        "its key has {digits} characters instead of 64 hex digits (copy the file again, or make a new one with `plait keygen FILE` for all hosts)"
    )]
    WrongLength {
        /// Characters found.
        digits: usize,
    },
    /// A character that is no hex digit.
    #[error(
        "character {at} of its key is no hex digit (copy the file again, or make a new one with `plait keygen FILE` for all hosts)"
    )]
    NotHex {
        /// Which one, from 1 on.
        at: usize,
    },
}

/// HMAC-SHA256 (RFC 2104, FIPS 198-1) under a key, fed part by part.
#[derive(Clone)]
pub(super) struct Seal(Hmac<Sha256>);

/// The MAC is not this key's over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SealBroken;

impl Key {
    /// Takes 32 random bytes as a key.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads one line of a key file: `plait-key-1 <64 hex digits>`, its end optional.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut words = text.split_ascii_whitespace();
        let format = words.next().ok_or(KeyError::Empty)?;
        if format != FORMAT {
            return Err(KeyError::NotAKeyFile);
        }
        let digits = words.next().unwrap_or_default();
        if words.next().is_some() || text.trim_ascii_end().contains('\n') {
            return Err(KeyError::TrailingText);
        }
        if let Some(at) = digits.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(KeyError::NotHex { at: at + 1 });
        }
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if pairs.len() != KEY_BYTES || !rest.is_empty() {
            return Err(KeyError::WrongLength { digits: digits.len() });
        }
        let mut key = Self([0; KEY_BYTES]);
        for (byte, [high, low]) in key.0.iter_mut().zip(pairs) {
            *byte = hex_value(*high) << 4 | hex_value(*low);
        }
        Ok(key)
    }

    /// Reads the text of a key file: one key, or two while the first one replaces the second.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let lines = text.lines().filter(|line| !line.trim_ascii().is_empty());
        let keys = lines.map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(KeyError::Empty),
            1..=KEYS_MAX => Ok(keys),
            keys => Err(KeyError::TooMany { keys }),
        }
    }

    /// The text of a key file for this key, with a line end.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FORMAT} ");
        for byte in self.0 {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
            }
        }
        text.push('\n');
        text
    }

    /// What to call this key in a hello and in logs.
    pub fn key_id(&self) -> KeyId {
        let [a, b, c, d, ..] = self.seal("plait key id").finish();
        KeyId([a, b, c, d])
    }

    /// Starts a MAC for one purpose: `label` keeps a MAC made for one from passing for another.
    pub(super) fn seal(&self, label: &str) -> Seal {
        Seal(<Hmac<Sha256> as KeyInit>::new(&self.padded().into())).with(label.as_bytes())
    }

    /// The key as HMAC's first block: zeros up to the 64 bytes of a SHA-256 block (RFC 2104 section 2, step 1).
    fn padded(&self) -> [u8; 64] {
        let mut block = [0; 64];
        block[..KEY_BYTES].copy_from_slice(&self.0);
        block
    }
}

impl Seal {
    /// Goes on with `bytes`.
    pub(super) fn with(self, bytes: &[u8]) -> Self {
        Self(self.0.chain_update(bytes))
    }

    /// The MAC.
    pub(super) fn finish(self) -> [u8; MAC_BYTES] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether `mac` is the MAC, in a time that does not depend on where they differ.
    pub(super) fn verify(self, mac: &[u8]) -> Result<(), SealBroken> {
        self.0.verify_slice(mac).map_err(|_| SealBroken)
    }
}

impl Drop for Key {
    /// Best effort: the copies that the compiler made on the way are not reached.
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.key_id())
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The value of a character that was checked to be a hex digit.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_survives_its_text() {
        bolero::check!().with_type::<[u8; KEY_BYTES]>().for_each(|bytes| {
            let text = Key::from_bytes(*bytes).to_text();
            assert_eq!(text.len(), FORMAT.len() + 1 + 64 + 1);
            assert_eq!(Key::parse(&text).map(|key| key.0), Ok(*bytes));
            assert_eq!(Key::parse(&text.replace('\n', "\r\n")).map(|key| key.0), Ok(*bytes));
            assert_eq!(Key::parse(text.trim_end()).map(|key| key.0), Ok(*bytes));
        });
    }

    #[test]
    fn any_text_parses_or_is_refused() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let _ = Key::parse(text);
            let _ = Key::parse(&format!("{FORMAT} {text}"));
        });
    }

    #[test]
    fn what_is_wrong_with_a_text_is_named() {
        let error = |text: &str| Key::parse(text).expect_err(text);
        let hex = "0123456789abcdefABCDEF".repeat(4);
        let hex = &hex[..64];
        assert!(Key::parse(&format!("{FORMAT} {hex}")).is_ok());
        assert_eq!(error(" \n"), KeyError::Empty);
        assert_eq!(error("-----BEGIN PRIVATE KEY-----"), KeyError::NotAKeyFile);
        assert_eq!(error(&format!("plait-key-2 {hex}")), KeyError::NotAKeyFile);
        assert_eq!(error(FORMAT), KeyError::WrongLength { digits: 0 });
        assert_eq!(error(&format!("{FORMAT} {}", &hex[1..])), KeyError::WrongLength { digits: 63 });
        assert_eq!(error(&format!("{FORMAT} {hex}0")), KeyError::WrongLength { digits: 65 });
        assert_eq!(error(&format!("{FORMAT} x{hex}")), KeyError::NotHex { at: 1 });
        assert_eq!(error(&format!("{FORMAT} {hex} {hex}")), KeyError::TrailingText);
        assert_eq!(error(&format!("{FORMAT} {hex}\n# mine")), KeyError::TrailingText);
        assert_eq!(error(&format!("{FORMAT}\n{hex}")), KeyError::TrailingText);
        assert!(error("x").to_string().contains("plait keygen FILE"));
    }

    #[test]
    fn a_file_has_one_key_or_two() {
        let text = |byte| Key::from_bytes([byte; KEY_BYTES]).to_text();
        let keys = Key::parse_all(&format!("{}\r\n{}\n", text(1).trim_end(), text(2))).unwrap();
        assert_eq!(keys.iter().map(|key| key.0[0]).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(Key::parse_all(&text(1)).unwrap().len(), 1);
        assert_eq!(Key::parse_all("\n \n").unwrap_err(), KeyError::Empty);
        let three = [text(1), text(2), text(3)].concat();
        assert_eq!(Key::parse_all(&three).unwrap_err(), KeyError::TooMany { keys: 3 });
        assert_eq!(Key::parse_all(&format!("{}x", text(1))).unwrap_err(), KeyError::NotAKeyFile);
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        let key = Key::from_bytes([0xab; KEY_BYTES]);
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("Key({})", key.key_id()));
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }

    /// RFC 4231 section 4.3 ("Jefe") shows that this is HMAC-SHA256 and not some other keyed hash.
    #[test]
    fn seals_are_hmac_sha256() {
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(b"Jefe");
        let seal = Key::from_bytes(bytes).seal("what do ya want ").with(b"for nothing?");
        let mac = seal.clone().finish();
        let hex = mac.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(seal.clone().verify(&mac), Ok(()));
        assert_eq!(seal.clone().verify(&mac[..31]), Err(SealBroken));
        assert_eq!(seal.verify(&[0; MAC_BYTES]), Err(SealBroken));
    }
}
