//! As much of the ELF format as tells for which machine a program is, and whether it is static.

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// The program header that names a dynamic loader.
const PT_INTERP: u32 = 3;

/// What an ELF header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The machine as container images name it: `amd64` or `arm64`.
    pub architecture: &'static str,
    /// Whether it runs without a dynamic loader.
    pub is_static: bool,
}

impl Program {
    /// Reads the headers; `None` if this is no program for a 64-bit Linux machine that we know.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..64)?;
        if !head.starts_with(MAGIC) || head[4] != CLASS_64 || head[5] != LITTLE_ENDIAN {
            return None;
        }
        let architecture = match half(head, 18)? {
            62 => "amd64",
            183 => "arm64",
            _ => return None,
        };
        let table = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(half(head, 54)?), usize::from(half(head, 56)?));
        let mut is_static = true;
        for index in 0..count {
            let kind = bytes.get(table.checked_add(index * size)?..)?.get(..4)?;
            is_static &= u32::from_le_bytes(kind.try_into().ok()?) != PT_INTERP;
        }
        Some(Self { architecture, is_static })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one program header of this kind.
    pub(crate) fn program(machine: u16, kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn machines_and_loaders() {
        for (bytes, expected) in [
            (program(62, 1), Some(("amd64", true))),
            (program(62, PT_INTERP), Some(("amd64", false))),
            (program(183, 1), Some(("arm64", true))),
            (program(40, 1), None),
            (b"#!/bin/sh\n".to_vec(), None),
            (program(62, 1)[..100].to_vec(), Some(("amd64", true))),
            (program(62, 1)[..66].to_vec(), None),
            (program(62, 1)[..60].to_vec(), None),
            (Vec::new(), None),
        ] {
            let read = Program::read(&bytes).map(|program| (program.architecture, program.is_static));
            assert_eq!(read, expected, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn this_very_program() {
        let own = std::fs::read(std::env::current_exe().expect("a path")).expect("a program");
        if cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            assert!(Program::read(&own).is_some());
        }
    }
}
