package bandwidth

import "time"

// Bucket is a token bucket: it fills with a rate and may be overdrawn a little, so
// that what is taken is exact in the long run. The zero Bucket has no limit. It has
// no lock of its own.
type Bucket struct {
	rate   float64 // tokens per second; 0: no limit
	most   float64 // that gather while nobody takes any
	tokens float64
	at     time.Time // when tokens was right
}

// Set changes the rate per second, 0 for no limit, and how many tokens gather.
// A bucket that had no limit begins full.
func (b *Bucket) Set(rate, most float64, now time.Time) {
	b.fill(now)
	if b.rate == 0 {
		b.tokens = most
	}
	b.rate, b.most, b.at = rate, most, now
	b.tokens = min(max(b.tokens, -most), most) // a debt at a high rate is none at a low one
}

// Take takes a token if there is a whole one.
func (b *Bucket) Take(now time.Time) bool {
	b.fill(now)
	if b.rate > 0 && b.tokens < 1 {
		return false
	}
	b.spend(1)
	return true
}

// Full reports whether nothing would be different if nobody had ever taken a token.
func (b *Bucket) Full(now time.Time) bool {
	b.fill(now)
	return b.rate == 0 || b.tokens >= b.most
}

func (b *Bucket) fill(now time.Time) {
	if b.rate > 0 {
		b.tokens = min(b.tokens+b.rate*now.Sub(b.at).Seconds(), b.most)
		b.at = now
	}
}

// wait is how long it takes until the bucket is not overdrawn, after fill.
func (b *Bucket) wait() time.Duration {
	if b.rate == 0 || b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens/b.rate*float64(time.Second)) + 1
}

func (b *Bucket) spend(n int) {
	if b.rate > 0 {
		b.tokens -= float64(n)
	}
}
