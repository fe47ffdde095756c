use super::*;

const WINDOW: Duration = Duration::from_secs(15);
const WINDOWS: Windows = Windows { utilization: WINDOW, recent: Duration::from_secs(60) };

fn slot(end: Instant, length_ms: u64, percent: f64) -> Slot {
    Slot { end, timestamp_us: None, length: Duration::from_millis(length_ms), percent, history: false }
}

fn owner(pod: &str) -> Arc<Owner> {
    Arc::new(Owner { namespace: "ns".into(), pod: pod.into(), container: "c".into() })
}

fn whole(owner: Option<&Arc<Owner>>) -> Division {
    Division::Whole(owner.cloned())
}

/// Credits slots to the one owner of an undivided device.
fn credit(ledger: &mut DeviceLedger, slots: &[Slot], owner: Option<&Arc<Owner>>, now: Instant) {
    let slots = slots.iter().map(|slot| (*slot, Share::Unknown));
    ledger.credit(slots, &whole(owner), now);
}

fn account(ledger: &DeviceLedger, owner: Option<&Arc<Owner>>) -> Option<Account> {
    accounts(ledger, &whole(owner)).first().map(|(_, account)| *account)
}

fn accounts(ledger: &DeviceLedger, division: &Division) -> Vec<(Option<Arc<Owner>>, Account)> {
    let accounts = ledger.accounts(division, Instant::now());
    accounts.into_iter().map(|(owner, balance)| (owner, balance.total)).collect()
}

#[test]
fn a_gap_adds_to_neither_and_too_much_of_it_leaves_no_mean() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let mut ledger = DeviceLedger::new(WINDOWS, start);
    for second in 1..=20 {
        let slots = if (5..15).contains(&second) { vec![] } else { vec![slot(at(second), 1000, 40.0)] };
        credit(&mut ledger, &slots, None, at(second));
    }
    let nobody = account(&ledger, None).unwrap();
    assert!((nobody.observed_s - 10.0).abs() < 1e-9);
    assert!((nobody.active_s - 4.0).abs() < 1e-9);
    assert_eq!(ledger.gpu.mean(WINDOW, at(20)), None);
    assert_eq!(ledger.gpu.mean(Duration::from_secs(5), at(20)).map(f64::round), Some(40.0));
}

#[test]
fn the_first_mean_comes_after_two_seconds_and_history_counts_for_it_alone() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut fresh = DeviceLedger::new(WINDOWS, start);
    credit(&mut fresh, &[slot(at(1000), 1000, 50.0)], None, at(1000));
    assert_eq!(fresh.gpu.mean(WINDOW, at(1000)), None);
    credit(&mut fresh, &[slot(at(2000), 1000, 50.0)], None, at(2000));
    assert_eq!(fresh.gpu.mean(WINDOW, at(2000)), Some(50.0));

    let mut with_history = DeviceLedger::new(WINDOWS, start);
    let history: Vec<Slot> = (0..70).map(|_| Slot { history: true, ..slot(start, 200, 30.0) }).collect();
    credit(&mut with_history, &history, None, start);
    assert_eq!(with_history.gpu.mean(WINDOW, start).map(f64::round), Some(30.0));
    assert_eq!(account(&with_history, None), Some(Account::default()));
    assert_eq!(with_history.active_s, 0.0);
    assert_eq!(with_history.parts(&[owner("a")], start), None);
}

#[test]
fn an_owner_that_returns_within_ten_minutes_goes_on_and_one_that_comes_later_starts_at_zero() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let (a, b) = (owner("a"), owner("b"));
    let mut ledger = DeviceLedger::new(WINDOWS, start);
    credit(&mut ledger, &[slot(at(1), 1000, 100.0)], Some(&a), at(1));
    credit(&mut ledger, &[slot(at(2), 1000, 50.0)], Some(&b), at(2));
    credit(&mut ledger, &[], None, at(500));
    credit(&mut ledger, &[slot(at(501), 1000, 100.0)], Some(&a), at(501));
    assert_eq!(account(&ledger, Some(&a)), Some(Account { active_s: 2.0, observed_s: 2.0 }));
    credit(&mut ledger, &[], None, at(603));
    assert_eq!(account(&ledger, Some(&b)), None);
    assert_eq!(ledger.active_s, 2.5);
}

#[test]
fn a_divided_device_counts_use_for_whose_it_is_and_knowing_for_all() {
    let start = Instant::now();
    let (a, b) = (owner("a"), owner("b"));
    let division = Division::Among(vec![Arc::clone(&a), Arc::clone(&b)]);
    let mut ledger = DeviceLedger::new(WINDOWS, start);
    let mut seconds = 0;
    let mut next = |percent, share| {
        seconds += 1;
        (slot(start + Duration::from_secs(seconds), 1000, percent), share)
    };
    let slots = vec![
        next(50.0, Share::Of(Some(Arc::clone(&a)))),
        next(20.0, Share::Of(Some(Arc::clone(&b)))),
        next(0.0, Share::Idle),
        next(10.0, Share::Of(None)),
        next(80.0, Share::Unknown),
        // An owner without a series counts as one without labels.
        next(40.0, Share::Of(Some(owner("c")))),
        next(60.0, Share::Spread(vec![(Some(a.clone()), 0.25), (Some(b.clone()), 0.5), (None, 0.25)])),
    ];
    let now = slots.last().unwrap().0.end;
    ledger.credit(slots, &division, now);
    let accounts = accounts(&ledger, &division);
    let seconds: Vec<(f64, f64)> = accounts.iter().map(|(_, a)| (a.active_s, a.observed_s)).collect();
    assert_eq!(
        accounts.iter().map(|(o, _)| o.clone()).collect::<Vec<_>>(),
        [Some(a.clone()), Some(b.clone()), None]
    );
    assert_eq!(seconds, [(0.65, 6.0), (0.5, 6.0), (0.65, 6.0)]);
    assert!((ledger.active_s - 2.6).abs() < 1e-9);
    let more = (0..9).map(|_| next(50.0, Share::Of(Some(Arc::clone(&b))))).collect::<Vec<_>>();
    let now = more.last().unwrap().0.end;
    ledger.credit(more, &division, now);
    let parts = ledger.parts(&[a, b], now).unwrap();
    assert!((parts[0] - 15.0 / 14.0).abs() < 1e-9 && (parts[1] - 500.0 / 14.0).abs() < 1e-9, "{parts:?}");
}

proptest::proptest! {
    /// Owners coming and going, alone and together: what the accounts gain adds up to the device
    /// less what nobody knows of, no counter falls, and none gains more than the time that passed.
    #[test]
    fn accounts_add_up_to_the_device(
        steps in proptest::collection::vec((0usize..8, 0usize..6, 0.0f64..100.0, 1u64..1000), 1..60)
    ) {
        let start = Instant::now();
        let mut now = start;
        let owners: Vec<_> = (0..3).map(|i| owner(&i.to_string())).collect();
        let everybody = Division::Among(owners.clone());
        let mut ledger = DeviceLedger::new(WINDOWS, start);
        for (present, who, percent, ms) in steps {
            let here: Vec<_> = owners.iter().enumerate().filter(|(i, _)| present >> i & 1 == 1).map(|(_, o)| o.clone()).collect();
            let division = if here.len() > 1 { Division::Among(here) } else { Division::Whole(here.first().cloned()) };
            let share = match who {
                0..3 => Share::Of(Some(owners[who].clone())),
                3 => Share::Spread(vec![(Some(owners[0].clone()), 0.3), (None, 0.2), (Some(owners[2].clone()), 0.5)]),
                4 => Share::Of(None),
                _ => Share::Unknown,
            };
            // Open all of them, so that accounts can be compared one by one.
            ledger.credit([], &everybody, now);
            let before = accounts(&ledger, &everybody);
            let device_before = ledger.active_s;
            now += Duration::from_millis(ms);
            ledger.credit([(slot(now, ms, percent), share)], &division, now);
            let seconds = ms as f64 / 1000.0 + 1e-9;
            let (mut active, mut most) = (0.0, 0.0f64);
            for ((_, was), (_, is)) in before.iter().zip(&accounts(&ledger, &everybody)) {
                for (was, is) in [(was.active_s, is.active_s), (was.observed_s, is.observed_s)] {
                    proptest::prop_assert!(is >= was && is - was <= seconds);
                }
                active += is.active_s - was.active_s;
                most = most.max(is.observed_s - was.observed_s);
            }
            let device = ledger.active_s - device_before;
            // All of it, or nothing where nobody knows.
            let expected = if most > 0.0 { device } else { 0.0 };
            proptest::prop_assert!((active - expected).abs() < 1e-9, "{active} of {device}");
            if let Some(parts) = ledger.parts(&owners, now) {
                proptest::prop_assert!(parts.iter().sum::<f64>() <= 100.0 + 1e-6);
            }
        }
    }
}

/// A reader that starts now would take the sums of the label that is left for all of the pod.
#[test]
fn a_pod_has_no_recent_sums_while_some_are_under_a_label_that_ended() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let of = |container: &str| {
        Arc::new(Owner { namespace: "ns".into(), pod: "a".into(), container: container.into() })
    };
    let (nameless, named, other) = (of(""), of("c"), owner("b"));
    let mut ledger = DeviceLedger::new(WINDOWS, start);
    let recent = |ledger: &DeviceLedger, division: &Division, now| {
        let accounts = ledger.accounts(division, now);
        accounts.into_iter().map(|(_, balance)| balance.recent.map(|it| it.observed_s)).collect::<Vec<_>>()
    };
    for second in 1..=40 {
        credit(&mut ledger, &[slot(at(second), 1000, 80.0)], Some(&nameless), at(second));
    }
    assert_eq!(recent(&ledger, &whole(Some(&nameless)), at(40)), [Some(40.0)]);
    for second in 41..=70 {
        credit(&mut ledger, &[slot(at(second), 1000, 80.0)], Some(&named), at(second));
    }
    assert_eq!(recent(&ledger, &whole(Some(&named)), at(70)), [None]);
    // Both are printed, and the device's other owner has nothing to do with it.
    let all = Division::Among(vec![Arc::clone(&nameless), Arc::clone(&named), Arc::clone(&other)]);
    let of_all = ledger.accounts(&all, at(70));
    assert!(
        of_all.iter().any(|(owner, balance)| *owner == Some(Arc::clone(&named)) && balance.recent.is_some())
    );
    for second in 71..=100 {
        credit(&mut ledger, &[slot(at(second), 1000, 80.0)], Some(&named), at(second));
    }
    assert_eq!(recent(&ledger, &whole(Some(&named)), at(100)), [Some(60.0)]);
}

#[test]
fn a_pod_that_takes_anothers_name_has_none_of_its_recent_seconds() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let (pod, other) = (owner("a"), owner("b"));
    let division = Division::Among(vec![Arc::clone(&pod), Arc::clone(&other)]);
    let mut ledger = DeviceLedger::new(WINDOWS, start);
    let recent = |ledger: &DeviceLedger, now| {
        let accounts = ledger.accounts(&division, now);
        let observed =
            |(_, balance): (_, Balance)| (balance.total.observed_s, balance.recent.map(|it| it.observed_s));
        accounts.into_iter().map(observed).take(2).collect::<Vec<_>>()
    };
    ledger.credit([], &division, at(0));
    let mut tick = |second: u64, uid: Option<&str>| {
        let share = Share::Of(Some(Arc::clone(&pod)));
        ledger.credit([(slot(at(second), 1000, 80.0), share)], &division, at(second));
        if let Some(uid) = uid {
            ledger.pod_is("ns", "a", uid);
        }
        recent(&ledger, at(second))
    };
    // What came before the UID was known may be of another one.
    assert_eq!(tick(1, None), [(1.0, Some(1.0)), (1.0, Some(1.0))]);
    assert_eq!(tick(2, Some("u0")), [(2.0, None), (2.0, Some(2.0))]);
    assert_eq!(tick(3, Some("u0")), [(3.0, Some(1.0)), (3.0, Some(3.0))]);
    // A moment without it changes nothing.
    assert_eq!(tick(4, None), [(4.0, Some(2.0)), (4.0, Some(4.0))]);
    assert_eq!(tick(5, Some("u0")), [(5.0, Some(3.0)), (5.0, Some(5.0))]);
    assert_eq!(tick(6, Some("u1")), [(6.0, None), (6.0, Some(6.0))]);
    assert_eq!(tick(7, Some("u1")), [(7.0, Some(1.0)), (7.0, Some(7.0))]);
}
