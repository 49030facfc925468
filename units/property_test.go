package units

import (
	"reflect"
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestParseProperty(t *testing.T) {
	for in, want := range map[string]struct {
		name  string
		value any
	}{
		"CPUQuota=20%":       {"CPUQuotaPerSecUSec", uint64(200000)},
		"CPUQuota=0.5%":      {"CPUQuotaPerSecUSec", uint64(5000)},
		"CPUWeight=10000":    {"CPUWeight", uint64(10000)},
		"MemoryMax=1G":       {"MemoryMax", uint64(1 << 30)},
		"MemoryMax=infinity": {"MemoryMax", infinity},
		"MemoryMax=50%":      {"MemoryMaxScale", uint32(1 << 31)},
		"MemoryMax=100%":     {"MemoryMaxScale", uint32(1<<32 - 1)},
		"TasksMax=2K":        {"TasksMax", uint64(2000)},
		"RuntimeMaxSec=90":   {"RuntimeMaxUSec", uint64(90000000)},
		"RuntimeMaxSec=1m":   {"RuntimeMaxUSec", uint64(60000000)},
	} {
		p, err := ParseProperty(in)
		if err != nil || p.property.Name != want.name || !reflect.DeepEqual(p.property.Value.Value(), want.value) {
			t.Errorf("%s: %v, %v; want %v", in, p, err, want)
		}
	}
	for _, in := range []string{
		"", "=", "CPUQuota", "CPUQuota=", "CPUQuota=20", "CPUQuota=NaN%", "CPUQuota=-1%", "CPUQuota=Inf%", "CPUWeight=0", "CPUWeight=10001",
		"MemoryMax=x", "MemoryMax=-1", "MemoryMax=101%", "MemoryMax=NaN%", "MemoryMax=99999999T", "MemoryMax=1K1", "TasksMax=",
		"RuntimeMaxSec=0", "RuntimeMaxSec=-1s", "IOReadBandwidthMax=sda 1M", "IOReadBandwidthMax=/dev/sda",
		"ExecStart=/bin/sh", "Slice=system.slice", "Delegate=yes", "cpuquota=1%",
	} {
		if p, err := ParseProperty(in); !fail.Is(err, fail.InvalidArgument) {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
}

func FuzzParseProperty(f *testing.F) {
	f.Add("CPUQuota=20%")
	f.Add("IOReadBandwidthMax=/dev/sda 10M")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParseProperty(s); err != nil && !fail.Is(err, fail.InvalidArgument) {
			t.Errorf("%q: %v", s, err)
		}
	})
}
