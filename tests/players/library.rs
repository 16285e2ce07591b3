//! A film for players, in two renditions.

use std::{fs, path::Path, process::Command};

/// Makes thirty seconds in two renditions (`rates`, as ffmpeg reads them), fMP4 in segments of 2 s. False if this ffmpeg has no
/// encoder that browsers decode.
pub fn make_library(dir: &Path, rates: [&str; 2]) -> bool {
    fs::create_dir(dir).unwrap();
    // Noise, so that the larger one has the rate that it is given.
    let scaled = "[0:v]split=2[a][b];[a]scale=320:180[low];[b]noise=alls=20:allf=t,scale=640:360[high]";
    let output = Command::new("ffmpeg")
        .current_dir(dir)
        .args(["-nostdin", "-hide_banner", "-v", "error", "-y"])
        .args(["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=30"])
        .args(["-f", "lavfi", "-i", "sine=frequency=440:duration=30", "-filter_complex", scaled])
        .args(["-map", "[low]", "-map", "1:a", "-map", "[high]", "-map", "1:a"])
        .args(["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "50"])
        .args(["-sc_threshold", "0", "-b:v:0", rates[0], "-b:v:1", rates[1], "-c:a", "aac", "-ac", "2"])
        .args(["-f", "hls", "-hls_time", "2", "-hls_list_size", "0", "-hls_segment_type", "fmp4"])
        .args(["-hls_fmp4_init_filename", "init.mp4", "-hls_segment_filename", "%v/%03d.m4s"])
        .args(["-master_pl_name", "master.m3u8", "-var_stream_map", "v:0,a:0 v:1,a:1", "%v/list.m3u8"])
        .output()
        .unwrap();
    if !output.status.success() {
        crate::missing::skipped(format_args!(
            "this ffmpeg makes no H.264: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    output.status.success()
}

/// Flags of a Chromium that plays without a screen, and without asking anybody but the page's servers.
pub const CHROMIUM_FLAGS: [&str; 9] = [
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
];
