package server

import (
	"context"
	"reflect"
	"testing"

	"github.com/cntr-attach/cntr-attach/dbus"
)

func TestImages(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	c := connectClient(t)
	list, err := c.ListImages(context.Background())
	if want := []dbus.Image{
		{Name: "host", Type: "host", Path: "/"}, {Name: "tools", Type: "directory", Path: "/srv/tools"},
	}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("ListImages = %v, %v; want %v", list, err, want)
	}
	for image, shown := range map[string]string{
		"": "host", "host": "host", "tools": "tools", "/srv/../tools/": "/tools", "machine:web": "nspawn:web",
	} {
		a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "60"}, Image: image})
		if err != nil {
			t.Errorf("image %q: %v", image, err)
			continue
		}
		s, err := c.Session(context.Background(), a.ID)
		if err != nil || s.Image != shown {
			t.Errorf("the image of a session with %q is %+v, %v", image, s, err)
		}
		if err := c.TerminateSession(context.Background(), a.ID); err != nil {
			t.Error(err)
		}
		_ = a.Status.Close()
	}
}
