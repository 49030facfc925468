package session

import (
	"math/bits"
	"strings"

	"github.com/moby/sys/capability"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Capabilities limits what a command may have: to some capabilities, or to all but some. It never gives any.
type Capabilities struct {
	Set uint64 `json:"set"`           // a bit for each, as in /proc/PID/status
	Not bool   `json:"not,omitempty"` // Set is what the command must not have
}

// ParseCapabilities takes names such as "CAP_NET_RAW" (capabilities(7)), in any case and with or without CAP_. No names
// at all are no capabilities. Names that all have "~" in front are those to leave out. Others are fail.InvalidArgument.
func ParseCapabilities(names []string) (*Capabilities, error) {
	const hint = "capabilities(7) has the names; ~ is in front of all of them, or of none"
	c := &Capabilities{}
	for i, name := range names {
		bare, not := strings.CutPrefix(name, "~")
		if i > 0 && not != c.Not {
			return nil, fail.New(fail.InvalidArgument, hint, "%q does not go with %q", name, names[0])
		}
		c.Not = not
		bit, known := capabilityOf(bare)
		if !known {
			return nil, fail.New(fail.InvalidArgument, hint, "there is no capability %q", name)
		}
		c.Set |= bit
	}
	return c, nil
}

func capabilityOf(name string) (bit uint64, known bool) {
	name = strings.TrimPrefix(strings.ToLower(name), "cap_")
	for _, c := range capability.ListKnown() {
		if c.String() == name {
			return 1 << c, true
		}
	}
	return 0, false
}

// limit returns what is left of the capabilities that a command could have. To ask for one that it could not is
// fail.InvalidArgument.
func (c *Capabilities) limit(all uint64, machine string) (uint64, error) {
	switch {
	case c == nil:
		return all, nil
	case c.Not:
		return all &^ c.Set, nil
	case c.Set&^all != 0:
		lacking := capability.Cap(bits.TrailingZeros64(c.Set &^ all))
		return 0, fail.New(fail.InvalidArgument, "a session has the machine's capabilities at most, and two for debuggers",
			"machine %q may not have CAP_%s, and so may no command in it", machine, strings.ToUpper(lacking.String()))
	}
	return c.Set, nil
}
