package tunnel

import (
	"math/rand/v2"
	"testing"
	"time"
)

// box is a middlebox: carriers die of it when nothing goes through for idle, or at
// age. A silent one drops and does not tell. 0: no limit.
type box struct {
	idle, age time.Duration
	silent    bool
}

// live lets one quiet carrier live in b, for an hour at most, and p learn from it.
// It says whether the carrier was replaced in time.
func (b box) live(p *pathLimits, now time.Time) (replaced bool) {
	const hour = time.Hour
	at := time.Duration(0)
	due := p.replaceAfter(0)
	for at < hour {
		gap := p.interval()
		switch {
		case due > 0 && at+gap >= due && (b.age == 0 || due < b.age):
			p.replaced()
			return true
		case b.age > 0 && at+gap >= b.age:
			p.quietDeath(quietDeath{b.age - at, true}, now)
			p.aged(b.age, now)
			return false
		case b.idle > 0 && gap >= b.idle && b.silent:
			p.quietDeath(quietDeath{gap, false}, now)
			return false
		case b.idle > 0 && gap >= b.idle:
			p.quietDeath(quietDeath{b.idle, true}, now)
			p.aged(at+b.idle, now)
			return false
		}
		at += gap
		p.survived(gap)
	}
	return true
}

var epoch = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

func newLimits() *pathLimits {
	return &pathLimits{heartbeat: 20 * time.Second, min: time.Second, max: 20 * time.Second}
}

func TestIdleLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		box    box
		deaths int           // carriers that it costs
		least  time.Duration // of the interval in the end
	}{
		{"none", box{}, 0, 20 * time.Second},
		{"beyond the heartbeat", box{idle: time.Minute}, 0, 20 * time.Second},
		{"5 s", box{idle: 5 * time.Second}, 2, 3500 * time.Millisecond},
		{"15 s", box{idle: 15 * time.Second}, 2, 11 * time.Second},
		{"2 s", box{idle: 2 * time.Second}, 2, 1500 * time.Millisecond},
		{"5 s, silent", box{idle: 5 * time.Second, silent: true}, 3, 2 * time.Second},
		{"15 s, silent", box{idle: 15 * time.Second, silent: true}, 2, 6 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newLimits()
			deaths := 0
			for range 20 {
				if !test.box.live(p, epoch) {
					deaths++
				}
			}
			if deaths != test.deaths {
				t.Errorf("%d carriers died, want %d", deaths, test.deaths)
			}
			if d := p.interval(); d < test.least || test.box.idle > 0 && d >= test.box.idle {
				t.Errorf("a heartbeat of %v, want %v or more and less than %v", d, test.least, test.box.idle)
			}
			if p.Age > 0 {
				t.Errorf("an age limit of %v", p.Age)
			}
		})
	}
}

// Whoever allows longer intervals than at first gets them, as long as the path can
// bear.
func TestLongerHeartbeats(t *testing.T) {
	for _, b := range []box{
		{}, {idle: 10 * time.Minute}, {idle: time.Minute}, {idle: time.Minute, silent: true}, {idle: 100 * time.Second, silent: true},
	} {
		p := newLimits()
		p.max = 5 * time.Minute
		deaths := 0
		for range 50 {
			if !b.live(p, epoch) {
				deaths++
			}
		}
		least, most := p.max, p.max
		if b.idle > 0 && b.idle < p.max {
			least, most = b.idle*6/10, b.idle
		}
		if d := p.interval(); d < least || d > most || deaths > 4 {
			t.Errorf("%+v: a heartbeat of %v after %d deaths, want %v to %v after 4 at most", b, d, deaths, least, most)
		}
	}
}

// A network that is down for a while is no idle limit.
func TestOutageIsNoIdleLimit(t *testing.T) {
	closed := func(quiet time.Duration) quietDeath { return quietDeath{quiet, true} }
	silent := func(quiet time.Duration) quietDeath { return quietDeath{quiet, false} }
	const ms = time.Millisecond
	for _, test := range []struct {
		name     string
		survived time.Duration // by the carriers before
		deaths   []quietDeath
		between  time.Duration // what is survived between two of them
		want     time.Duration // the heartbeat
	}{
		{"one reset", 0, []quietDeath{closed(1600 * ms)}, 0, 20 * time.Second},
		{"one outage", 0, []quietDeath{silent(20 * time.Second)}, 0, 20 * time.Second},
		{"resets at various times", 0, []quietDeath{closed(1600 * ms), closed(7 * time.Second), closed(2 * time.Second), closed(12 * time.Second)}, 0, 20 * time.Second},
		{"like resets, and more is survived between", 0, []quietDeath{closed(5 * time.Second), closed(5 * time.Second), closed(5 * time.Second)}, 6 * time.Second, 20 * time.Second},
		{"a box that closes, now and then just after a ping", 0, []quietDeath{silent(5 * time.Second), closed(5010 * ms)}, 0, 3750 * ms},
		{"a box that closes, now and then too late", 0, []quietDeath{closed(5 * time.Second), closed(5010 * ms)}, 5020 * ms, 3750 * ms},
		{"outages, and as much is survived between", 20 * time.Second, []quietDeath{silent(20 * time.Second), silent(20 * time.Second), silent(20 * time.Second)}, 20 * time.Second, 20 * time.Second},
		{"an outage and a reset", 20 * time.Second, []quietDeath{silent(20 * time.Second), closed(7 * time.Second)}, 0, 20 * time.Second},
		{"short outages", 0, []quietDeath{silent(2500 * ms), silent(3500 * ms)}, 0, 20 * time.Second},
		{"a reset after the limit is known", 0, []quietDeath{closed(8 * time.Second), closed(8 * time.Second), closed(2 * time.Second)}, 0, 6 * time.Second},
		{"short outages that are alike", 0, []quietDeath{silent(2500 * ms), silent(2520 * ms)}, 0, time.Second},
		{"another network, and a box in it", 20 * time.Second, []quietDeath{closed(4 * time.Second), closed(4100 * ms)}, 0, 3 * time.Second},
		{"a box that forgets, after various times", 0, []quietDeath{silent(20 * time.Second), silent(9 * time.Second)}, 0, 3 * time.Second},
		{"a box that forgets earlier than it seemed", 0, []quietDeath{silent(20 * time.Second), silent(20 * time.Second), silent(6 * time.Second)}, 0, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newLimits()
			if test.survived > 0 {
				p.survived(test.survived)
			}
			for i, d := range test.deaths {
				if i > 0 && test.between > 0 {
					p.survived(test.between)
				}
				p.quietDeath(d, epoch)
			}
			if d := p.interval(); d.Round(10*ms) != test.want.Round(10*ms) {
				t.Errorf("a heartbeat of %v, want %v", d, test.want)
			}
		})
	}
}

// Resets and outages at random times hardly ever make an idle limit.
func TestRandomCutsAreNoIdleLimit(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	learned := 0
	const cuts = 5000
	for range cuts / 10 {
		p := newLimits()
		for range 10 { // within a week
			left := time.Duration(rng.ExpFloat64() * float64(10*time.Minute))
			for ; left > p.interval(); left -= p.interval() {
				p.survived(p.interval())
			}
			if p.quietDeath(quietDeath{left, true}, epoch) {
				learned++
			}
		}
	}
	if learned > cuts/200 {
		t.Errorf("a limit was learned %d times from %d random cuts", learned, cuts)
	}
	t.Logf("learned %d times from %d cuts", learned, cuts)
}

// What carriers survive shows that a limit is none.
func TestIdleLimitIsForgotten(t *testing.T) {
	p := newLimits()
	for range 2 {
		p.quietDeath(quietDeath{4 * time.Second, true}, epoch)
	}
	if p.survived(4 * time.Second) {
		t.Error("forgotten too early")
	}
	if !p.survived(5*time.Second) || p.interval() != 20*time.Second {
		t.Errorf("a heartbeat of %v", p.interval())
	}
}

func TestAgeLimit(t *testing.T) {
	for _, age := range []time.Duration{2 * time.Second, 10 * time.Second, 30 * time.Second, 5 * time.Minute, 55 * time.Minute} {
		p := newLimits()
		b := box{age: age}
		deaths := 0
		for !b.live(p, epoch) && deaths < 10 {
			deaths++
		}
		for range 20 {
			if !b.live(p, epoch) {
				t.Errorf("%v: a carrier died after the limit was learned", age)
			}
		}
		if after := p.replaceAfter(0); deaths > 4 || after > age-time.Second || after < age/4 {
			t.Errorf("%v: replaced after %v, learned from %d deaths", age, after, deaths)
		}
	}
}

// Carriers that are cut at random ages have no limit. Chance may make one; then
// the next deaths unmake it.
func TestRandomCutsAreNoAgeLimit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := newLimits()
	learned := 0
	const cuts = 5000
	for range cuts {
		age := 2*time.Second + time.Duration(rng.ExpFloat64()*float64(20*time.Second))
		before := p.Age
		if p.aged(age, epoch); p.Age > 0 && before == 0 {
			learned++
		}
	}
	if learned > cuts/100 {
		t.Errorf("a limit was learned %d times from %d random cuts", learned, cuts)
	}
	t.Logf("learned %d times from %d cuts", learned, cuts)
	for range 10 {
		p.aged(time.Duration(2+rng.IntN(100))*time.Second, epoch)
	}
	if p.Age > 0 {
		t.Errorf("an age limit of %v is still believed", p.Age)
	}
}

// A limit that has become shorter is learned anew; replacements that succeed say
// that it is right.
func TestAgeLimitChanges(t *testing.T) {
	p := newLimits()
	for range alikeDeaths {
		p.aged(30*time.Second, epoch)
	}
	for range 10 {
		p.aged(time.Duration(3+rand.IntN(5))*time.Second, epoch) // now and then one breaks
		p.aged(12*time.Second, epoch)
		p.replaced()
	}
	if p.Age != 30*time.Second {
		t.Errorf("an age limit of %v, want 30 s", p.Age)
	}
	for range alikeDeaths {
		p.aged(10*time.Second, epoch)
	}
	if p.Age != 10*time.Second || p.replaceAfter(0) != 8*time.Second || p.replaceAfter(3*time.Second) != 5*time.Second {
		t.Errorf("an age limit of %v, replaced after %v", p.Age, p.replaceAfter(0))
	}
	if p.replaceAfter(time.Minute) <= 0 {
		t.Error("one that is too old is never replaced")
	}
	p.maxAge = 4 * time.Second
	if p.replaceAfter(0) != 4*time.Second {
		t.Errorf("replaced after %v, want 4 s as configured", p.replaceAfter(0))
	}
}

func TestFactsExpire(t *testing.T) {
	p := newLimits()
	for range 2 {
		p.quietDeath(quietDeath{4 * time.Second, true}, epoch)
	}
	for range alikeDeaths {
		p.aged(30*time.Minute, epoch)
	}
	p.expire(epoch.Add(factsExpire))
	if p.Idle == 0 || p.Age == 0 {
		t.Error("forgotten too early")
	}
	p.expire(epoch.Add(factsExpire + 1))
	if p.facts != (facts{}) {
		t.Errorf("still known: %+v", p.facts)
	}
}

// Carriers that died early three times, for whatever reason, are not replaced every
// second for a week.
func TestShortAgesExpireSooner(t *testing.T) {
	p := newLimits()
	for range alikeDeaths {
		p.aged(leastAge, epoch)
	}
	now, replaced := epoch, 0
	for ; p.Age > 0 && replaced < 100_000; replaced++ {
		now = now.Add(p.replaceAfter(0))
		p.replaced()
		p.expire(now)
	}
	if replaced > 10_000 {
		t.Errorf("replaced %d times without another look", replaced)
	}
}
