//! TUN devices that carry TSO super-packets.
//!
//! In: a name. Out: the descriptor of a device in the caller's network namespace, whose packets begin with a
//! `virtio_net_hdr`. Called by whoever builds a topology, inside the namespace that the device is to be in.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags};

const DEVICE: &str = "/dev/net/tun";

/// Makes the TUN device `name` in the network namespace of the calling thread and opens it: non-blocking, with
/// checksum and TCP segmentation offload, so that the kernel hands over super-packets of up to 64 KiB. The device is
/// down and without address; it vanishes when the descriptor is closed.
///
/// Errors: the name is not 1 to 15 bytes long, is taken, `/dev/net/tun` is missing or may not be opened, or the caller
/// lacks CAP_NET_ADMIN in its network namespace.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a device cannot be named {name:?}"),
        ));
    }
    let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("{DEVICE}: {error}")))?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call; its name ends in NUL.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: this request takes its argument by value; no memory is touched.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}
