package tunnel

import (
	"slices"
	"time"
)

// pathLimits are what a client learns about the way to its server from how carriers live
// and die: the idle limit and the age limit of whatever stands between. It has no
// clock and does no I/O.
//
// One death teaches nothing, since carriers also die of resets and outages that have
// nothing to do with a limit. Losing a carrier costs the streams nothing, so what is
// learned wrongly costs a few pings or needless replacements; it is forgotten after a
// while.
type pathLimits struct {
	heartbeat, min, max time.Duration // the interval to begin with, and its bounds
	maxAge              time.Duration // of carriers, by configuration; 0: as learned

	facts

	suspect quietDeath      // the last death that may be of an idle limit, until a carrier refutes it; the zero value is none
	deaths  []time.Duration // ages of the last carriers that the path has ended, not more than alikeDeaths
}

// quietDeath is the death of a carrier that was quiet before: for how long, and
// whether that is the limit or the limit may be lower.
type quietDeath struct {
	quiet time.Duration
	exact bool
}

// facts are what is worth remembering. A zero duration is unknown.
type facts struct {
	Idle      time.Duration // a quiet time that a carrier has died of
	IdleExact bool          // and that is the limit
	Survived  time.Duration // one that carriers survive
	IdleAt    time.Time     // when Idle was learned

	Age   time.Duration // at which carriers die, whatever flows
	AgeAt time.Time
}

const (
	// factsExpire is how long something learned is believed: then another carrier
	// may die of it.
	factsExpire = 7 * 24 * time.Hour
	// agesExpire is how many times itself an age limit is believed, if that is
	// less: what replaces carriers every second, by mistake, does not for a week.
	agesExpire = 2000
	// leastQuiet is the shortest quiet time after which no answer to a carrier speaks
	// for a limit, unless it comes twice after the same time. After less, it is more
	// likely that the network was down.
	leastQuiet = 4 * time.Second
	// deathSlack is by how much times of like deaths may differ, apart from 3 %.
	deathSlack = 200 * time.Millisecond
	// alikeDeaths is how many carriers in a row must die at the same age to make
	// a limit of it. One or two do that by chance.
	alikeDeaths = 3
	// leastAge is the lowest age limit that can be told from carriers that break
	// for other reasons, again and again.
	leastAge = 1500 * time.Millisecond
	// leastLife is what a carrier is given although it is older than it should be.
	leastLife = 500 * time.Millisecond
)

// expire forgets what is too old.
func (f *facts) expire(now time.Time) {
	if now.Sub(f.IdleAt) > factsExpire {
		f.Idle, f.IdleExact, f.IdleAt, f.Survived = 0, false, time.Time{}, 0
	}
	if old := now.Sub(f.AgeAt); old > factsExpire || old/agesExpire > f.Age {
		f.Age, f.AgeAt = 0, time.Time{}
	}
}

// interval is how often to ping. Below a limit that is known exactly it keeps a
// distance. One that is somewhere below is approached from far below; from there
// it goes up, if it may become longer than it was in the beginning, as long as
// carriers survive it.
func (p *pathLimits) interval() time.Duration {
	d := p.heartbeat
	most := max(p.max, p.heartbeat)
	explores := p.max > p.heartbeat
	switch {
	case p.Idle > 0 && p.IdleExact:
		d = p.Idle * 3 / 4
	case p.Idle > 0 && explores && p.Survived > p.Idle*3/4:
		d = p.Survived
	case p.Idle > 0 && explores && p.Survived > 0:
		d = (p.Survived + p.Idle) / 2
	case p.Idle > 0:
		d = p.Idle / 3
	case explores && p.Survived >= p.heartbeat:
		d = p.Survived * 3 / 2
	}
	return min(max(d, min(p.min, p.heartbeat)), most)
}

// survived takes the longest quiet time that a carrier has survived. It reports
// whether an idle limit was forgotten because of that.
func (p *pathLimits) survived(quiet time.Duration) (forgotten bool) {
	p.Survived = max(p.Survived, min(quiet, max(p.max, p.heartbeat)))
	if p.suspect.refuted(quiet) {
		p.suspect = quietDeath{}
	}
	if p.Idle == 0 || quiet <= p.Idle*11/10 {
		return false
	}
	p.Idle, p.IdleExact, p.IdleAt = 0, false, time.Time{} // another path, or it was none
	return true
}

// quietDeath takes the death of a carrier that was quiet before. It reports whether
// an idle limit was learned, for which two carriers in a row must have died alike,
// and none in between must have survived as much.
func (p *pathLimits) quietDeath(d quietDeath, now time.Time) (learned bool) {
	if d.quiet < min(p.min, p.heartbeat) || p.Idle > 0 && d.quiet > p.Idle {
		return false
	}
	before := p.suspect
	p.suspect = d
	switch {
	case d.confirms(before):
		d = quietDeath{min(d.quiet, before.quiet), d.exact || before.exact}
	case p.narrows(d):
	default:
		return false
	}
	p.suspect = quietDeath{}
	p.Idle, p.IdleExact, p.IdleAt = d.quiet, d.exact, now
	if p.Survived > d.quiet*9/10 {
		p.Survived = 0
	}
	return true
}

// confirms reports whether a box with an idle limit may have caused both deaths. One
// that closes connections does so after the same time. One that forgets them drops
// what they send after any longer time.
func (d quietDeath) confirms(before quietDeath) bool {
	switch {
	case before.quiet == 0:
		return false
	case alike(deathSlack, d.quiet, before.quiet):
		return true
	}
	return !d.exact && !before.exact && min(d.quiet, before.quiet) >= leastQuiet
}

// refuted reports whether a carrier that has survived this quiet time shows that no
// limit caused the death. A ping that comes just when a box closes the connection may
// be in time.
func (d quietDeath) refuted(survived time.Duration) bool {
	if d.exact {
		return survived > d.quiet && !alike(deathSlack, survived, d.quiet)
	}
	return survived > d.quiet*9/10
}

// narrows reports whether a death shows that the known idle limit is lower than it
// seemed: it was only known to be somewhere below, and nothing has survived as much.
func (p *pathLimits) narrows(d quietDeath) bool {
	return p.Idle > 0 && !p.IdleExact && !d.exact && d.quiet >= leastQuiet && d.quiet > p.Survived*11/10
}

// aged is told of a carrier that the path has ended at this age, whether it was
// quiet or not. It says whether anything was learned: a limit, or that there is
// none.
func (p *pathLimits) aged(age time.Duration, now time.Time) bool {
	if age < leastAge {
		return false
	}
	if len(p.deaths) == alikeDeaths {
		p.deaths = slices.Delete(p.deaths, 0, 1)
	}
	p.deaths = append(p.deaths, age)
	if len(p.deaths) < alikeDeaths {
		return false
	}
	if youngest := slices.Min(p.deaths); alike(deathSlack, youngest, slices.Max(p.deaths)) {
		p.Age, p.AgeAt, p.deaths = youngest, now, nil
		return true
	}
	if p.Age > 0 { // it does not help
		p.Age, p.AgeAt = 0, time.Time{}
		return true
	}
	return false
}

// alike says whether two times differ by not more than slack and 3 %.
func alike(slack, a, b time.Duration) bool {
	return (b - a).Abs() <= slack+max(a, b)*3/100
}

// replaced is told of a carrier that reached the age at which it is replaced.
func (p *pathLimits) replaced() {
	if p.Age > 0 {
		p.deaths = nil
	}
}

// replaceAfter is how long a carrier of this age may be used, 0 for as long as it
// lasts. The distance to the limit lets a dial fail and be tried again.
func (p *pathLimits) replaceAfter(age time.Duration) time.Duration {
	at := p.maxAge
	if p.Age > 0 {
		learned := min(p.Age*4/5, p.Age-time.Second)
		if at == 0 || learned < at {
			at = learned
		}
	}
	if at == 0 {
		return 0
	}
	return max(at-age, leastLife)
}
