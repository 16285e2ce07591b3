//! Bytes that tell where they belong, and their hashes.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

/// A SHA-256 in hexadecimal.
pub type Hash = String;

/// `len` bytes that no compression, repetition or shift leaves as they are: xorshift64*, seeded by the length.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
    bytes
}

pub fn hash(bytes: &[u8]) -> Hash {
    hexadecimal(&Sha256::digest(bytes))
}

pub fn hash_file(path: &Path) -> Hash {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hexadecimal(&digest.finalize()),
            read => digest.update(&buffer[..read]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> Hash {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
