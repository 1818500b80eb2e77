//! Scripts of one backend's life: what happens when, and what is ordered then.

use super::*;

const HANG: Duration = Duration::from_secs(10);

fn rules(fence: Fence) -> Rules {
    Rules {
        hang_timeout: Some(HANG),
        fence,
    }
}

/// A machine and its clock, in milliseconds.
struct Rig {
    start: Instant,
    now: u64,
    /// Probes are sent, and not answered.
    asked: bool,
    machine: Release,
}

impl Rig {
    /// One that answers: nothing was left to close.
    fn answering(fence: Fence) -> Self {
        let mut rig = Self::fresh(fence);
        rig.machine.handle_answer();
        assert_eq!(rig.orders(), [Order::Close]);
        rig.machine.handle_closed(rig.instant(), 0);
        assert_eq!(rig.orders(), [Order::Return(None)]);
        rig.at(1000);
        assert_eq!(rig.orders(), [Order::Close], "for those who came late");
        rig.machine.handle_closed(rig.instant(), 0);
        assert_eq!(rig.orders(), []);
        rig
    }

    fn fresh(fence: Fence) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: 0,
            asked: true,
            machine: Release::new(rules(fence), start),
        }
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn at(&mut self, now: u64) -> &mut Self {
        assert!(now >= self.now);
        self.now = now;
        if self.asked {
            self.machine.handle_missed(self.instant());
        }
        self
    }

    fn heard(&mut self) -> &mut Self {
        let now = self.instant();
        self.machine.handle_heard(now);
        self
    }

    fn ejected(&mut self) -> &mut Self {
        self.machine.handle_ejection(Ejection::Out);
        self
    }

    fn fence_ends(&mut self, how: Fenced) -> &mut Self {
        let now = self.instant();
        self.machine.handle_fence(now, how);
        self
    }

    fn orders(&mut self) -> Vec<Order> {
        let now = self.instant();
        let orders = std::iter::from_fn(|| self.machine.poll_order(now)).collect();
        assert!(
            self.machine.poll_deadline().is_none_or(|due| due > now),
            "a deadline that was met is over"
        );
        orders
    }

    /// Milliseconds from the start to the next deadline.
    fn due(&self) -> Option<u128> {
        let due = self.machine.poll_deadline()?;
        Some((due - self.start).as_millis())
    }
}

#[test]
fn silence_alone_releases_nothing_before_its_time() {
    let mut rig = Rig::answering(Fence::None);
    rig.at(2000).heard();
    // Not ejected, or kept in placement because too many are silent.
    assert_eq!(rig.at(60_000).orders(), []);
    assert_eq!(rig.due(), None);
    rig.heard().ejected();
    assert_eq!(rig.at(69_999).orders(), []);
    assert_eq!(rig.due(), Some(70_000));
    assert_eq!(rig.at(70_000).orders(), [Order::Release(How::Unfenced)]);
    assert!(rig.machine.is_released());
    assert_eq!(rig.at(200_000).orders(), [], "once");
    assert_eq!(rig.due(), None);
}

#[test]
fn any_sign_of_life_begins_the_silence_anew() {
    let mut rig = Rig::answering(Fence::None);
    rig.ejected();
    for second in 1..60 {
        assert_eq!(rig.at(second * 9000).heard().orders(), []);
    }
    assert_eq!(
        rig.at(59 * 9000 + 10_000).orders(),
        [Order::Release(How::Unfenced)]
    );
}

#[test]
fn who_is_not_asked_is_not_silent() {
    let mut rig = Rig::answering(Fence::None);
    rig.asked = false;
    // As if probes were rarer than the time to give up.
    assert_eq!(rig.at(2000).heard().ejected().at(60_000).orders(), []);
    assert_eq!(rig.due(), None);
    let earlier = rig.start + Duration::from_millis(1999);
    rig.machine.handle_missed(earlier);
    assert_eq!(rig.orders(), [], "that was before it was heard");
    let now = rig.instant();
    rig.machine.handle_missed(now);
    assert_eq!(rig.orders(), [Order::Release(How::Unfenced)]);
}

#[test]
fn one_that_was_never_heard_is_given_up_like_others() {
    let mut rig = Rig::fresh(Fence::None);
    assert_eq!(rig.ejected().at(9999).orders(), []);
    assert_eq!(rig.at(10_000).orders(), [Order::Release(How::Unfenced)]);
}

#[test]
fn never_is_never_unless_it_is_gone() {
    let mut rig = Rig::answering(Fence::Command);
    rig.machine.set_rules(Rules {
        hang_timeout: None,
        fence: Fence::Command,
    });
    assert_eq!(rig.ejected().at(1_000_000).orders(), []);
    assert_eq!(rig.due(), None);
    rig.machine.handle_gone();
    assert_eq!(rig.orders(), [Order::Release(How::Gone)]);
    rig.machine.handle_gone();
    assert_eq!(rig.orders(), []);
}

#[test]
fn a_fence_command_has_to_succeed_first() {
    let mut rig = Rig::answering(Fence::Command);
    assert_eq!(rig.ejected().at(20_000).orders(), [Order::Fence]);
    assert!(!rig.machine.is_released());
    assert_eq!(rig.at(25_000).orders(), [], "it is running");
    assert_eq!(rig.due(), None);
    rig.at(26_000).fence_ends(Fenced::Yes);
    assert_eq!(rig.orders(), [Order::Release(How::Fenced)]);
}

#[test]
fn a_fence_command_that_fails_is_tried_again_less_and_less() {
    let mut rig = Rig::answering(Fence::Command);
    rig.ejected().at(20_000);
    for pause in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
        assert_eq!(rig.orders(), [Order::Fence], "before {pause}");
        rig.fence_ends(Fenced::No);
        assert_eq!(rig.orders(), []);
        assert!(!rig.machine.is_released());
        let retry = rig.now + pause;
        assert_eq!(rig.due(), Some(u128::from(retry)));
        rig.at(retry);
    }
    // Heard and silent again: from the beginning.
    rig.heard();
    assert_eq!(rig.orders(), []);
    let silent = rig.now + 10_000;
    assert_eq!(rig.at(silent).orders(), [Order::Fence]);
    rig.fence_ends(Fenced::No);
    assert_eq!(rig.due(), Some(u128::from(silent + 1000)));
}

#[test]
fn one_that_wakes_while_it_is_fenced_is_not_released() {
    let mut rig = Rig::answering(Fence::Command);
    assert_eq!(rig.ejected().at(20_000).orders(), [Order::Fence]);
    rig.at(21_000).heard().fence_ends(Fenced::Yes);
    assert_eq!(rig.orders(), []);
    assert!(!rig.machine.is_released());
    // But if it had been the last that was heard of it, it is.
    assert_eq!(rig.at(31_000).orders(), [Order::Fence]);
    // No longer ejected when the command ends: there is nothing to give up.
    rig.machine.handle_ejection(Ejection::In);
    rig.fence_ends(Fenced::Yes);
    assert_eq!(rig.orders(), []);
}

#[test]
fn one_that_goes_while_it_is_fenced_is_gone_and_fenced_once_at_a_time() {
    let mut rig = Rig::answering(Fence::Command);
    assert_eq!(rig.ejected().at(20_000).orders(), [Order::Fence]);
    rig.machine.handle_gone();
    assert_eq!(rig.orders(), [Order::Release(How::Gone)]);
    rig.at(21_000).heard().machine.handle_answer();
    assert_eq!(rig.orders(), [Order::Close]);
    rig.machine.handle_closed(rig.instant(), 0);
    assert_eq!(rig.orders(), [Order::Return(Some(How::Gone))]);
    // Silent anew, and the first command runs still.
    assert_eq!(rig.at(40_000).orders(), [Order::Close]);
    assert_eq!(rig.orders(), []);
    rig.fence_ends(Fenced::No);
    assert_eq!(rig.at(41_000).orders(), [Order::Fence]);
}

#[test]
fn it_returns_when_nothing_is_left_to_close() {
    let mut rig = Rig::answering(Fence::None);
    assert_eq!(
        rig.ejected().at(20_000).orders(),
        [Order::Release(How::Unfenced)]
    );
    // Heard is not answered.
    assert_eq!(rig.at(21_000).heard().orders(), []);
    rig.machine.handle_answer();
    assert_eq!(rig.orders(), [Order::Close]);
    rig.machine.handle_answer();
    assert_eq!(rig.orders(), [], "it is being closed");
    rig.machine.handle_closed(rig.instant(), 2);
    assert_eq!(rig.orders(), [Order::Close], "more were moved meanwhile");
    assert!(rig.machine.is_released());
    // The connection ends in the middle of it: from the beginning on the next.
    rig.machine.handle_unlinked();
    rig.machine.handle_closed(rig.instant(), 0);
    assert_eq!(rig.orders(), []);
    assert!(rig.machine.is_released());
    rig.machine.handle_answer();
    assert_eq!(rig.orders(), [Order::Close]);
    rig.machine.handle_closed(rig.instant(), 0);
    assert!(!rig.machine.is_released());
    assert_eq!(rig.orders(), [Order::Return(Some(How::Unfenced))]);
    assert_eq!(rig.due(), Some(21_250));
    assert_eq!(rig.at(21_250).orders(), [Order::Close]);
}

#[test]
fn one_of_earlier_times_is_not_used_before_it_has_closed() {
    let mut rig = Rig::fresh(Fence::None);
    assert!(!rig.machine.is_released());
    rig.machine.handle_answer();
    assert_eq!(rig.orders(), [Order::Close]);
    assert!(rig.machine.is_released());
    // Another process under its name: the same.
    rig.machine.handle_closed(rig.instant(), 0);
    assert_eq!(rig.orders(), [Order::Return(None)]);
    rig.machine.handle_moved(rig.instant());
    assert!(!rig.machine.is_released());
    rig.machine.handle_answer();
    assert_eq!(rig.orders(), [Order::Close]);
    // And one that is released stays so under another address until that one answers.
    rig.machine.handle_gone();
    rig.machine.handle_moved(rig.instant());
    assert!(rig.machine.is_released());
}
