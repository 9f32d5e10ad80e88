package config

import (
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// ParseSize reads a whole number of bytes, or of KiB, MiB or GiB when one of these
// follows it.
func ParseSize(s string) (Size, error) {
	number, unit := s, int64(1)
	for _, u := range sizeUnits {
		if before, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = strings.TrimRight(before, " "), u.bytes
			break
		}
	}
	n, err := parseDecimal(number)
	if err != nil {
		return 0, wrong("write it like 512KiB, 4MiB, 1GiB or as a number of bytes", "%q is not a size", s)
	}
	if n < 0 || n > math.MaxInt64/unit {
		return 0, wrong("write it like 512KiB, 4MiB, 1GiB or as a number of bytes", "%q is out of range", s)
	}
	return Size(n * unit), nil
}

// String is what ParseSize reads, in the largest unit that is exact.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// parseDecimal reads digits with an optional minus sign: no plus sign, other base,
// underscore or leading zero, which other readers take for octal.
func parseDecimal(s string) (int64, error) {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || digits[0] == '+' || digits[0] == '-' || len(digits) > 1 && digits[0] == '0' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}
