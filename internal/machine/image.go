package machine

// ImageInfo is what a container manager tells of an image: a root file system that is kept to make machines of.
type ImageInfo struct {
	Name     string
	Type     string // as the manager calls it: "directory", "subvolume", "raw", "block"
	Path     string // on the host
	ReadOnly bool   // as the manager has it, which says nothing about its files
}
