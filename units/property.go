package units

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Property is a setting of a scope, as systemd-run(1) takes it with --property.
type Property struct{ property dbus.Property }

// parsers are the properties that a scope may be given: limits on what it uses (systemd.resource-control(5)) and on how
// long it lives (systemd.scope(5)). Each returns the name and the value that systemd has for it on the bus.
var parsers = map[string]func(value string) (name string, v any, err error){
	"CPUQuota":            parseCPUQuota,
	"CPUWeight":           weight("CPUWeight"),
	"IOWeight":            weight("IOWeight"),
	"IOReadBandwidthMax":  bandwidth("IOReadBandwidthMax"),
	"IOWriteBandwidthMax": bandwidth("IOWriteBandwidthMax"),
	"MemoryHigh":          amount("MemoryHigh", 1024),
	"MemoryMax":           amount("MemoryMax", 1024),
	"MemorySwapMax":       amount("MemorySwapMax", 1024),
	"TasksMax":            amount("TasksMax", 1000),
	"RuntimeMaxSec":       parseRuntime,
}

// ParseProperty parses NAME=VALUE. What cannot be set, or has a value that makes no sense, is fail.InvalidArgument.
func ParseProperty(assignment string) (Property, error) {
	name, value, found := strings.Cut(assignment, "=")
	if !found {
		return Property{}, fail.New(fail.InvalidArgument, "as in CPUQuota=20%", "property %q is not NAME=VALUE", assignment)
	}
	parse := parsers[name]
	if parse == nil {
		return Property{}, fail.New(fail.InvalidArgument,
			"there are "+strings.Join(slices.Sorted(maps.Keys(parsers)), ", "), "a session has no property %q", name)
	}
	name, v, err := parse(value)
	if err != nil {
		return Property{}, fail.New(fail.InvalidArgument, "see systemd.resource-control(5)",
			"property %q: %w", assignment, err)
	}
	return Property{property(name, v)}, nil
}

// infinity is systemd's 'no limit'.
const infinity = uint64(math.MaxUint64)

// parseCPUQuota parses a share of one CPU's time: "150%". On the bus it is µs per second.
func parseCPUQuota(value string) (string, any, error) {
	percent, found := strings.CutSuffix(value, "%")
	f, err := strconv.ParseFloat(percent, 64)
	if !found || err != nil || !(f > 0) || f > 1e6 {
		return "", nil, fmt.Errorf("%q is not a percentage above 0", value)
	}
	return "CPUQuotaPerSecUSec", uint64(max(1, f*10000)), nil
}

func weight(name string) func(string) (string, any, error) {
	return func(value string) (string, any, error) {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n < 1 || n > 10000 {
			return "", nil, fmt.Errorf("%q is not a number from 1 to 10000", value)
		}
		return name, n, nil
	}
}

// amount parses a number, one with a suffix (K is base), a percentage or "infinity". A percentage, of what the machine
// has, is a property of its own on the bus, in units of 2⁻³².
func amount(name string, base uint64) func(string) (string, any, error) {
	return func(value string) (string, any, error) {
		if percent, found := strings.CutSuffix(value, "%"); found {
			f, err := strconv.ParseFloat(percent, 64)
			if err != nil || !(f >= 0) || f > 100 {
				return "", nil, fmt.Errorf("%q is not a percentage up to 100", value)
			}
			return name + "Scale", uint32(min(f/100*(1<<32), math.MaxUint32)), nil
		}
		n, err := parseAmount(value, base)
		return name, n, err
	}
}

func parseAmount(value string, base uint64) (uint64, error) {
	if value == "infinity" {
		return infinity, nil
	}
	number, unit := value, uint64(1)
	for i, suffix := range "KMGT" {
		if cut, found := strings.CutSuffix(value, string(suffix)); found {
			number = cut
			for range i + 1 {
				unit *= base
			}
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n > infinity/unit {
		return 0, fmt.Errorf("%q is not a number, one with K, M, G or T, a percentage or infinity", value)
	}
	return n * unit, nil
}

// bandwidth parses "/dev/sda 10M".
func bandwidth(name string) func(string) (string, any, error) {
	type limit struct {
		Path  string
		Bytes uint64
	}
	return func(value string) (string, any, error) {
		device, rest, found := strings.Cut(value, " ")
		if !found || !path.IsAbs(device) {
			return "", nil, fmt.Errorf("%q is not a path and a number of bytes", value)
		}
		n, err := parseAmount(strings.TrimSpace(rest), 1000)
		return name, []limit{{device, n}}, err
	}
}

// parseRuntime parses a number of seconds, or a time as in "1h30m".
func parseRuntime(value string) (string, any, error) {
	d, err := time.ParseDuration(value)
	if n, isNumber := strconv.ParseUint(value, 10, 32); isNumber == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d <= 0 {
		return "", nil, fmt.Errorf("%q is not a number of seconds, or a time as in 1h30m", value)
	}
	return "RuntimeMaxUSec", uint64(d.Microseconds()), nil
}
