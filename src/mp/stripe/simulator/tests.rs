use super::{
    path::{Congestion, PathSpec},
    spec::{Spec, Weather, random_spec},
};
use Congestion::{Bbr, Cubic};

fn share(name: &str, spec: &Spec) -> f64 {
    let rates: f64 = spec.paths.iter().map(|path| path.rate).sum();
    let share = (0..5).map(|seed| Spec { seed, ..spec.clone() }.run()).map(|report| spec.bytes as f64 / report.seconds / rates).sum::<f64>() / 5.0;
    println!("{name}: {share:.3}");
    share
}

#[test]
fn floors() {
    for congestion in [Bbr, Cubic] {
        println!("{congestion:?}");
        let path = |mbit, ms| PathSpec::new(mbit, ms, congestion);
        for (mbit, ms) in [(50.0, 100.0), (80.0, 40.0), (20.0, 200.0), (50.0, 50.0), (50.0, 300.0)] {
            share("single", &Spec::table(vec![path(mbit, ms)], 1));
        }
        share("2x50", &Spec::table(vec![path(50.0, 100.0), path(50.0, 100.0)], 1));
        share("80+20", &Spec::table(vec![path(80.0, 40.0), path(20.0, 200.0)], 1));
        share("50+50", &Spec::table(vec![path(50.0, 50.0), path(50.0, 300.0)], 1));
        let lossy = |loss, mbit, ms| PathSpec { loss, ..path(mbit, ms) };
        if congestion == Cubic { continue; }
        share("lossy alone", &Spec::table(vec![lossy(0.005, 100.0, 150.0); 1], 1));
        share("lossy", &Spec::table(vec![lossy(0.005, 100.0, 150.0); 2], 1));
        share("4 alone", &Spec::table(vec![lossy(0.001, 100.0, 20.0)], 1));
        share("4 alone", &Spec::table(vec![lossy(0.001, 100.0, 200.0)], 1));
        share("4 mixed", &Spec::table([20.0, 60.0, 120.0, 200.0].map(|ms| lossy(0.001, 100.0, ms)).to_vec(), 1));
        for (name, bad) in [("half", lossy(0.5, 50.0, 100.0)), ("10x", path(50.0, 1000.0)), ("1M", path(1.0, 100.0))] {
            let both = Spec::table(vec![path(50.0, 100.0), bad], 1);
            let alone = both.only(0).run().seconds;
            let mean = (0..5).map(|seed| alone / Spec { seed, ..both.clone() }.run().seconds).sum::<f64>() / 5.0;
            println!("{name}: {mean:.3}");
        }
    }
}

#[test]
fn seeds() {
    let range = std::env::var("SEEDS").unwrap_or("0..300".into());
    let (a, b) = range.split_once("..").unwrap();
    let is_verbose = std::env::var("V").is_ok();
    for seed in a.parse::<u64>().unwrap()..b.parse().unwrap() {
        let spec = random_spec(seed);
        if is_verbose { println!("{seed} {spec:?}"); }
        let report = match std::panic::catch_unwind(|| spec.run()) {
            Ok(report) => report,
            Err(_) => { println!("PANIC seed {seed}"); continue }
        };
        let weather = Weather::of(seed);
        let mut best = f64::INFINITY;
        if weather != Weather::Stormy {
            for path in 0..spec.paths.len() { if spec.paths.len() > 1 {
                match std::panic::catch_unwind(|| spec.only(path).run()) { Ok(r) => best = best.min(r.seconds), Err(_) => println!("PANIC seed {seed} only {path}") }
            } }
        }
        let rates: f64 = spec.paths.iter().map(|path| path.rate).sum();
        let share = spec.bytes as f64 / report.seconds / rates;
        let rtt_min = spec.paths.iter().map(|p| p.round_trip).fold(9e9, f64::min);
        let extra = (report.resent.tail_bytes, report.resent.recovered_bytes);
        let lanes: Vec<_> = spec.paths.iter().map(|p| (p.lanes, (p.rate / 1e4).round() / 100.0, (p.round_trip * 1e3).round(), (p.queue / p.rate * 1e3).round(), p.congestion == Cubic)).collect();
        println!("SEED {seed} {weather:?} paths {} secs {:.3} share {share:.3} best {:.3} over {:.3} slack_rtts {:.2} tail {:.3} rec {:.3} turns {} frames {} {lanes:?}", spec.paths.len(), report.seconds, best, report.seconds / best, (report.seconds - best * 1.05) / rtt_min,
          extra.0 as f64 / spec.bytes as f64, extra.1 as f64 / spec.bytes as f64, report.turns, report.frames);
    }
}
