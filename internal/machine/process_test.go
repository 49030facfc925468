package machine

import (
	"reflect"
	"testing"
)

func TestParseStatus(t *testing.T) {
	const text = "Name:\tPPid:\t1\nPPid:\t253\nUid:\t1000\t0\t0\t0\nGroups:\t \nNSpid:\t254\t1\n"
	got, err := parseStatus(text)
	if err != nil || !reflect.DeepEqual(got, Status{253, 1000, []int{254, 1}}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "PPid:\t1\nUid:\t0\t0\t0\t0\n", "PPid:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t1\n",
		"PPid:\t1\nUid:\t-1\t0\t0\t0\nNSpid:\t1\n", "PPid:\t1\nUid:\t0\t0\t0\t0\nNSpid:\t1\ty\n",
	} {
		if s, err := parseStatus(bad); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add("PPid:\t253\nUid:\t0\t0\t0\t0\nNSpid:\t254\t1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseStatus(text); err == nil && (s.Parent < 0 || len(s.NSPID) == 0) {
			t.Errorf("%q is %+v", text, s)
		}
	})
}
