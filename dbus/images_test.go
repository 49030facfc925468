package dbus

import (
	"context"
	"reflect"
	"testing"
)

func TestImages(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	c := connectClient(t)
	list, err := c.ListImages(context.Background())
	if want := []Image{{"host", "host", "/"}, {"tools", "directory", "/srv/tools"}}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("ListImages = %v, %v; want %v", list, err, want)
	}
	for image, shown := range map[string]string{
		"": "host", "host": "host", "tools": "tools", "/srv/../tools/": "/tools", "machine:web": "nspawn:web",
	} {
		a, err := c.Attach(context.Background(), "web", AttachOptions{Command: []string{"sleep", "60"}, Image: image})
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
