//! Sets of IP networks: who may connect, and whose word is taken for an address.
//!
//! Resolves no names.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

/// Networks as a configuration lists them. An IPv4 address that comes as IPv6 (`::ffff:10.0.0.1`,
/// from a listener on `[::]`) counts as what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// A text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: write an address like \"10.0.0.1\" or a network like \"10.0.0.0/8\"")]
pub struct BadNetwork(String);

impl Networks {
    /// Of addresses (`10.0.0.1`) and networks (`10.0.0.0/8`, `fd00::/8`).
    ///
    /// # Errors
    /// The first text that is neither.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadNetwork> {
        let network = |text: &str| {
            let parsed = IpNet::from_str(text)
                .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
                .map_err(|_| BadNetwork(text.chars().take(80).collect()));
            parsed.map(|network| network.trunc())
        };
        texts
            .into_iter()
            .map(network)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Is the address in one of them?
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether every address of IPv4, or of IPv6, is in them.
    pub fn is_everywhere(&self) -> bool {
        IpNet::aggregate(&self.0)
            .iter()
            .any(|network| network.prefix_len() == 0)
    }

    /// As they are written.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(", "))
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
pub(super) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_networks_and_in_no_others() {
        let networks = Networks::parse(["10.0.0.0/8", "192.0.2.7", "fd00::/8", "10.1.2.3/30"]);
        let networks = networks.unwrap();
        for (address, inside) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(
                networks.contains(address.parse().unwrap()),
                inside,
                "{address}"
            );
        }
        assert_eq!(networks.texts()[3], "10.1.2.0/30");
        assert!(!Networks::default().contains(IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn what_is_everywhere_is_known_in_parts_too() {
        for (texts, everywhere) in [
            (&["0.0.0.0/0"][..], true),
            (&["10.0.0.0/8", "::/0"], true),
            (&["0.0.0.0/1", "128.0.0.0/1"], true),
            (&["0.0.0.0/1", "::/1"], false),
            (&["0.0.0.0"], false),
            (&[], false),
        ] {
            let networks = Networks::parse(texts.iter().copied()).unwrap();
            assert_eq!(networks.is_everywhere(), everywhere, "{texts:?}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "localhost",
            "10.0.0.0/8 ",
            "::/129",
        ] {
            let error = Networks::parse(["10.0.0.1", bad]).unwrap_err();
            assert_eq!(error, BadNetwork(bad.to_owned()));
        }
    }
}
