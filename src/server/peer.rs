//! Who calls, as far as an address says it.

use std::net::{IpAddr, Ipv6Addr};

/// All who share an address are one caller; of IPv6, all who share a /64, which is what one network hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer(IpAddr);

impl Peer {
    /// A caller in this process, which has no address.
    pub(super) const LOCAL: Self = Self(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        // A socket that takes both sees IPv4 as IPv6.
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one_caller() {
        let same =
            |a: &str, b: &str| Peer::from(a.parse::<IpAddr>().unwrap()) == Peer::from(b.parse::<IpAddr>().unwrap());
        let table = [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", false),
            ("fd00::1", "fd00::2:0:0:1", true),
            ("fd00::1", "fd00:0:0:1::1", false),
        ];
        for (a, b, expected) in table {
            assert_eq!(same(a, b), expected, "{a} {b}");
        }
    }
}
