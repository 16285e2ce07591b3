//! In: an offset. Out: the bytes that the file of every transfer has there.
//!
//! Called by `main` (which writes the file), the measuring client and the check of what aria2c wrote. Invariant: no two
//! stretches of the file are alike, so that a lost, repeated or moved byte is noticed, wherever it stands.

use std::io::{self, BufWriter, Read, Write};

/// Name of the file.
pub const FILE_NAME: &str = "video.bin";
/// The content is made of words of this size, each a function of its index alone.
const WORD_BYTES: usize = 8;
/// Read at once when a file is checked.
const BLOCK_BYTES: usize = 256 * 1024;

/// Writes the first `bytes` bytes of the content.
pub fn write(bytes: u64, into: impl Write) -> io::Result<()> {
    let mut into = BufWriter::with_capacity(BLOCK_BYTES, into);
    for index in 0..bytes.div_ceil(WORD_BYTES as u64) {
        let left = bytes - index * WORD_BYTES as u64;
        into.write_all(&word(index)[..left.min(WORD_BYTES as u64) as usize])?;
    }
    into.flush()
}

/// Compares `from`, read to its end, with the content's first `bytes` bytes.
pub fn check(bytes: u64, mut from: impl Read) -> io::Result<Result<(), String>> {
    let mut check = Check::default();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match from.read(&mut block)? {
            0 => break,
            received => {
                if let Err(wrong) = check.take(&block[..received]) {
                    return Ok(Err(wrong));
                }
            }
        }
    }
    Ok(if check.taken == bytes { Ok(()) } else { Err(format!("{} of {bytes} bytes", check.taken)) })
}

/// How far a stream has been compared with the content.
#[derive(Default)]
pub struct Check {
    /// Bytes that came and were right.
    pub taken: u64,
}

impl Check {
    /// Compares the next bytes of the stream.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let skipped = (self.taken % WORD_BYTES as u64) as usize;
            let word = word(self.taken / WORD_BYTES as u64);
            // The way of almost every byte: three times as fast as the other.
            if let (0, Some((whole, rest))) = (skipped, bytes.split_first_chunk())
                && *whole == word
            {
                self.taken += WORD_BYTES as u64;
                bytes = rest;
                continue;
            }
            let expected = &word[skipped..];
            let (part, rest) = bytes.split_at(expected.len().min(bytes.len()));
            if part != &expected[..part.len()] {
                let origin =
                    origin(bytes).map_or("nowhere in the file".to_owned(), |at| format!("at byte {at}"));
                return Err(format!("CHANGED BYTES: what came at byte {} belongs {origin}", self.taken));
            }
            self.taken += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// Where in the file `bytes` stand; the answer to "who put that here?".
fn origin(bytes: &[u8]) -> Option<u64> {
    /// Files are smaller, and few other words than theirs lead below it.
    const WORDS_MAX: u64 = 1 << 40;
    let words = bytes.windows(WORD_BYTES).take(WORD_BYTES).enumerate();
    let mut candidates = words.filter_map(|(skipped, bytes)| {
        let index = index(bytes.try_into().ok()?);
        (index < WORDS_MAX).then(|| (index * WORD_BYTES as u64).checked_sub(skipped as u64))?
    });
    candidates.next()
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// splitmix64 (Steele, Lea, Flood, 2014) of the index: a bijection, so no word occurs twice.
fn word(index: u64) -> [u8; WORD_BYTES] {
    let mut mixed = index.wrapping_add(1).wrapping_mul(STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(FACTORS[0]);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(FACTORS[1]);
    (mixed ^ (mixed >> 31)).to_le_bytes()
}

/// The index of a word: [`word`] backwards.
fn index(word: [u8; WORD_BYTES]) -> u64 {
    let unshift = |mixed: u64, by: u32| mixed ^ (mixed >> by) ^ (mixed >> (2 * by));
    let mut mixed = unshift(u64::from_le_bytes(word), 31);
    mixed = unshift(mixed.wrapping_mul(inverse(FACTORS[1])), 27);
    mixed = unshift(mixed.wrapping_mul(inverse(FACTORS[0])), 30);
    mixed.wrapping_mul(inverse(STEP)).wrapping_sub(1)
}

/// The odd number whose product with `odd` is 1 modulo 2⁶⁴: each of Newton's steps doubles the right bits, from 3.
fn inverse(odd: u64) -> u64 {
    (0..5).fold(odd, |inverse, _| inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse))))
}
