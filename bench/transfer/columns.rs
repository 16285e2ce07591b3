//! The columns of the table: who carries the file, and how it is called.

use clap::ValueEnum;
use serde::Serialize;

/// Who carries the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    /// One plain TCP connection over the best path: what a browser would use
    Direct,
    /// curl over the best path
    Curl,
    /// HAProxy in TCP mode on the best path's relay host
    Haproxy,
    /// aria2c, one connection per path
    AriaOne,
    /// aria2c, eight connections per path
    AriaEight,
    /// One connection over the kernel's MPTCP on all paths
    KernelMptcp,
    /// Plait on the best path alone: one lane
    OnePath,
    /// Plait, one lane over the kernel's MPTCP on all paths
    MptcpLane,
    /// Plait, one lane on each path
    ParallelOne,
    /// Plait, lanes per path chosen by itself (the default)
    ParallelAuto,
    /// The same without the filler that warms the lanes while the downstream starts; its first transfer only
    ParallelUnwarmed,
}

impl Column {
    /// Plait's own.
    pub fn is_plait(self) -> bool {
        self.has_warm() || self == Self::ParallelUnwarmed
    }

    /// A second transfer is measured behind the first.
    pub fn has_warm(self) -> bool {
        matches!(self, Self::OnePath | Self::ParallelOne | Self::ParallelAuto | Self::MptcpLane)
    }

    /// How it is called in tables of `paths` paths.
    pub fn label(self, paths: usize) -> String {
        match self {
            Self::Direct => "direct".into(),
            Self::OnePath => "Plait, best path alone".into(),
            Self::ParallelOne => format!("Plait, parallel {paths}"),
            Self::ParallelAuto => "Plait, parallel auto".into(),
            Self::ParallelUnwarmed => "Plait, parallel auto, no filler".into(),
            Self::MptcpLane => "Plait, MPTCP lane".into(),
            Self::Curl => "curl".into(),
            Self::AriaOne => format!("aria2c, {}", vec!["1"; paths].join("+")),
            Self::AriaEight => format!("aria2c, {}", vec!["8"; paths].join("+")),
            Self::KernelMptcp => "kernel MPTCP".into(),
            Self::Haproxy => "HAProxy relay".into(),
        }
    }
}

/// What has gone before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmth {
    /// Nothing: fresh processes, fresh connections. All that a peer can be.
    Cold,
    /// One transfer through the same processes.
    Warm,
}
