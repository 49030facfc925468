// Package oci makes a tree of files of a container image, without unpacking it.
//
// An image is a list of layers, each a tar file, mostly compressed (OCI image specification; docker save has a format of
// its own). To show its files one needs to know what is in the layers and where, and that takes reading each layer once,
// as a whole. That is when digests are verified: of the layer as it is stored, of the tar file in it, and of every file of
// that one is taken. What was found out is kept as the layer's index, in a directory that belongs to whoever the session
// is for ([Cache]), so the next session reads no layer at all to begin with. What a user's images make known is never used
// for another's.
//
// A layer that brings its own table of contents (zstd:chunked, eStargz) is not read as a whole: the table is its index, and a file's
// content is decompressed from where the table says that it begins. The digest of the table is in the manifest, whose own digest was
// verified as that of any document, and the digests of the files are in the table, so each byte that is served was compared with what the
// manifest stands for. What this leaves out are the digests of the layer as it is stored and of the tar file in it. Nothing is known of the parts of
// the layer that are not served, and nothing says that its tar headers say the same as the table: whoever made the manifest
// can show other files here than to who unpacks the layer, as with any other client of these formats. An import compares the digest of the layer
// as it is stored, for it fetches all of it. A layer is read as a whole, with all its digests, if the size in the manifest is not its own, if the table is not as
// its digest says, cannot be parsed, is for more than a layer may have, or has no SHA-256 digest for each file. A file that is damaged is found
// to be so when it is opened, before any of its bytes is served, and cannot be opened then.
//
// Digests of chunks are of no use here: files are verified, and kept in the cache, as a whole. Nor is the eStargz library, which holds a table of any length
// in memory, decoded, before its entries can be limited, and wants digests of chunks where containers-storage writes none.
//
// From the indexes one tree is made in memory ([Tree]). A file's content is read from its layer when somebody opens
// the file, compared with its digest, and kept in the cache. A compressed layer cannot be read from its middle, so
// the cache has a copy of it in frames of one MiB, compressed lightly; a plain one is read where it is.
//
// All names are names in that tree: nothing of an image ever names a file of the host. Symbolic links on the way to an
// entry are followed in the tree, as in a root directory.
package oci

// What an image may ask for. Beyond that it is refused.
const (
	maxDocument = 8 << 20   // bytes of an index, a manifest, a configuration
	maxDepth    = 4         // of indexes in indexes
	maxLayers   = 512       // overlayfs has 500
	maxEntries  = 2_000_000 // of all layers together
	maxNames    = 512 << 20 // bytes of names, link targets and attributes, likewise
	maxBytes    = 64 << 30  // bytes of files of one layer
	maxRatio    = 250       // how many times longer than the layer its tar file may be,
	ratioSlack  = 256 << 20 // once it is longer than this
	maxFrames   = maxBytes >> 20
)
