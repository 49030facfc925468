package fuse

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// record is what follows the metadata of an event: type, length, file system, handle, name.
func record(kind byte, handle, name string) []byte {
	n := binary.NativeEndian
	b := []byte{kind, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}
	b = n.AppendUint32(b, uint32(len(handle)))
	b = n.AppendUint32(b, 1) // type
	b = append(b, handle...)
	if name != "" {
		b = append(append(b, name...), 0)
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	n.PutUint16(b[2:], uint16(len(b)))
	return b
}

func eventOf(mask uint64, records ...[]byte) []byte {
	n := binary.NativeEndian
	b := make([]byte, 24)
	for _, r := range records {
		b = append(b, r...)
	}
	n.PutUint32(b, uint32(len(b)))
	n.PutUint64(b[8:], mask)
	n.PutUint32(b[20:], 4711)
	return b
}

func TestEvents(t *testing.T) {
	key := func(handle string) string {
		return string([]byte{1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0}) + handle
	}
	buf := eventOf(unix.FAN_CREATE, record(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, "dir-", "a name"), record(unix.FAN_EVENT_INFO_TYPE_FID, "child", ""))
	buf = append(buf, eventOf(unix.FAN_ATTRIB, record(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, "dir-", "."))...)
	buf = append(buf, eventOf(unix.FAN_Q_OVERFLOW)...)
	want := []event{
		{unix.FAN_CREATE, 4711, key("dir-"), "a name", key("child")},
		{unix.FAN_ATTRIB, 4711, key("dir-"), ".", ""},
		{unix.FAN_Q_OVERFLOW, 4711, "", ".", ""},
	}
	var got []event
	eachEvent(buf, func(e *event) { got = append(got, *e) })
	if len(got) != len(want) {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

// FuzzEvents looks for bytes that the parser reads beyond their end.
func FuzzEvents(f *testing.F) {
	f.Add(eventOf(unix.FAN_DELETE, record(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, "12345678", "x"), record(unix.FAN_EVENT_INFO_TYPE_FID, "1", "")))
	f.Add(eventOf(0)[:20])
	f.Fuzz(func(t *testing.T, buf []byte) {
		eachEvent(buf, func(e *event) {
			if e.child != "" && len(e.child) < 12 || len(e.dir)+len(e.name)+len(e.child) > 3*len(buf)+1 {
				t.Errorf("%+v of %d bytes", e, len(buf))
			}
		})
	})
}

func TestMountInfo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mountinfo")
	text := "21 26 0:20 / /proc rw,relatime - proc proc rw\n42 26 0:21 / /a\\040b\\134c rw - tmpfs tmpfs rw\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	table, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for range 2 { // it is read again and again
		points, err := readMounts(table)
		if err != nil || len(points) != 2 || points["21"] != "/proc" || points["42"] != `/a b\c` {
			t.Errorf("%q, %v", points, err)
		}
	}
}
