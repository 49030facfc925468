package oci

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
)

// inflater reads gzip (RFC 1952) and what is in it, deflate (RFC 1951). It is here because nothing else of looking into a layer can be done
// before, or at the same time with it, and because that of the libraries that do without C takes two to three times as long: it has 56 bits at hand
// for each symbol, and tables that tell with one look what a symbol is and how many bits it and what belongs to it have.
type inflater struct {
	src  io.Reader
	err  error // what comes after what is in out
	more bool  // there may be more in src

	in       []byte // what was read of it, and then as many zeros as are looked at at once
	pos, end int    // in[pos:end] was not taken yet
	limit    int    // pos may be that, and 8 bytes be there
	bits     uint64 // the next bits, the lowest is the first
	count    uint   // how many of them count

	out         []byte // what may be referred to, and what comes next
	read, wrote int    // out[read:wrote] is to be read
	first       int    // nothing before that in out is of this member
	summed      int    // what is before that is in sum
	sum, size   uint32 // of what was written of this member

	left   int  // bytes of a stored block
	coded  bool // a block of symbols is being read
	last   bool // it is the last one
	fixed  bool // the tables are those of the fixed codes
	lit    [1<<litBits + 143*16]uint32
	dist   [1<<distBits + 15*128]uint32
	length [1 << lengthBits]uint32
}

// Tables have an entry for each of the next so many bits, and further ones for codes that are longer.
const (
	litBits    = 11
	distBits   = 8
	lengthBits = 7
	maxCode    = 15 // bits of a code
)

// An entry of a table: how many bits a code has with the extra bits of its symbol; from the 9th on how many it has without them; then one of the
// flags; from the 17th on a literal, the least length or distance, or where further entries are, of which the bits from the 9th on
// tell how many bits they are for. 0 is no code.
const (
	isLiteral = 1 << 31
	isMatch   = 1 << 15
	isLink    = 1 << 14
	isEnd     = 1 << 13
)

const (
	window   = 32 << 10
	matchMax = 258
	slack    = 16 // that copying 8 bytes at a time may write beyond
)

var errCorrupt = errors.New("its gzip data is damaged")

// Entries of all symbols, without their codes, and the lengths of the fixed codes.
var litSymbols, distSymbols, lengthSymbols, fixedLengths = symbols()

func symbols() (lit [286]uint32, dist [30]uint32, length [19]uint32, fixed [288]uint8) {
	for n := range 256 {
		lit[n] = isLiteral | uint32(n)<<16
	}
	lit[256] = isEnd
	for n, base := 257, uint32(3); n < 285; n++ {
		extra := uint32(max(n-261, 0) / 4)
		lit[n] = isMatch | base<<16 | extra
		base += 1 << extra
	}
	lit[285] = isMatch | matchMax<<16
	for n, base := 0, uint32(1); n < len(dist); n++ {
		extra := uint32(max(n-2, 0) / 2)
		dist[n] = isMatch | base<<16 | extra
		base += 1 << extra
	}
	for n := range length {
		length[n] = isMatch | uint32(n)<<16
	}
	for n := range fixed {
		switch {
		case n < 144, n >= 280:
			fixed[n] = 8
		case n < 256:
			fixed[n] = 9
		default:
			fixed[n] = 7
		}
	}
	return lit, dist, length, fixed
}

// codes makes a table of the lengths of codes. An incomplete code will do if it is one code of one bit, or none.
func codes(table []uint32, primary uint, lengths []uint8, symbols []uint32) error {
	var count, next [maxCode + 1]uint
	longest := uint(0)
	for _, l := range lengths {
		count[l]++
		longest = max(longest, uint(l))
	}
	count[0] = 0
	code := uint(0)
	for l := uint(1); l <= longest; l++ {
		code <<= 1
		next[l] = code
		code += count[l]
	}
	clear(table[:1<<primary])
	if longest == 0 {
		return nil
	}
	if code != 1<<longest && (code != 1 || longest != 1) {
		return errCorrupt
	}
	end := uint(1) << primary
	for n, l := range lengths {
		l := uint(l)
		if l == 0 {
			continue
		}
		at := uint(bits.Reverse16(uint16(next[l])) >> (16 - l))
		next[l]++
		entry := uint32(0)
		if n < len(symbols) {
			entry = symbols[n] + uint32(l<<8+l)
		}
		if l <= primary {
			for ; at < 1<<primary; at += 1 << l {
				table[at] = entry
			}
			continue
		}
		head := &table[at&(1<<primary-1)]
		if *head == 0 {
			*head = isLink | uint32(end)<<16 | uint32(longest-primary)<<8
			end += 1 << (longest - primary)
		}
		further := table[*head>>16:][:1<<(longest-primary)]
		for at >>= primary; at < uint(len(further)); at += 1 << (l - primary) {
			further[at] = entry
		}
	}
	return nil
}

// gunzip reads gzip.
func gunzip(r io.Reader) (*inflater, error) {
	d := &inflater{src: r, more: true, in: make([]byte, 64<<10), out: make([]byte, 4*window+matchMax+slack)}
	d.limit = -1 // nothing is there
	return d, d.header()
}

// fill makes sure that 8 bytes can be looked at from pos on; beyond the end they are zeros.
func (d *inflater) fill() error {
	if d.more {
		d.end = copy(d.in, d.in[d.pos:d.end])
		d.pos = 0
		for idle := 0; d.end < 1<<10 && d.more; {
			n, err := d.src.Read(d.in[d.end : len(d.in)-2*slack])
			d.end += n
			switch {
			case errors.Is(err, io.EOF):
				d.more = false
				clear(d.in[d.end : d.end+2*slack])
			case err != nil:
				return err
			case n > 0:
				idle = 0
			default:
				if idle++; idle == 100 {
					return io.ErrNoProgress
				}
			}
		}
		if d.limit = d.end - 8; d.more {
			return nil
		}
		d.limit = d.end + 7
	}
	// Then more was taken than there was: what is in bits is less than a byte, or it would not be asked for.
	if d.pos > d.limit {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// need makes sure that there are so many bits, 32 at most.
func (d *inflater) need(n uint) error {
	if d.count >= n {
		return nil
	}
	if d.pos > d.limit {
		if err := d.fill(); err != nil {
			return err
		}
	}
	d.bits |= binary.LittleEndian.Uint64(d.in[d.pos:]) << d.count
	d.pos += int((63 - d.count) >> 3)
	d.count |= 56
	return nil
}

// take takes so many bits.
func (d *inflater) take(n uint) (uint32, error) {
	if err := d.need(n); err != nil {
		return 0, err
	}
	v := uint32(d.bits & (1<<n - 1))
	d.bits >>= n
	d.count -= n
	return v, nil
}

// taken returns how many whole bytes of in were taken.
func (d *inflater) taken() int { return d.pos - int(d.count>>3) }

// align goes on at the next whole byte.
func (d *inflater) align() {
	d.bits >>= d.count & 7
	d.count &^= 7
}

// header reads what is before a member.
func (d *inflater) header() error {
	var h [10]byte
	for i := range h {
		b, err := d.take(8)
		if err != nil {
			return err
		}
		h[i] = byte(b)
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3] >= 0x20 {
		return errCorrupt
	}
	skip := uint32(0)
	if h[3]&4 != 0 {
		n, err := d.take(16)
		if err != nil {
			return err
		}
		skip = n
	}
	for ; skip > 0; skip-- {
		if _, err := d.take(8); err != nil {
			return err
		}
	}
	for _, flag := range []byte{8, 16} { // a name and a comment, which end with a 0
		for h[3]&flag != 0 {
			b, err := d.take(8)
			if err != nil {
				return err
			}
			if b == 0 {
				break
			}
		}
	}
	if h[3]&2 != 0 { // a sum of the header, of which nothing is believed
		if _, err := d.take(16); err != nil {
			return err
		}
	}
	if d.taken() > d.end {
		return io.ErrUnexpectedEOF
	}
	d.first, d.summed, d.sum, d.size, d.last = d.wrote, d.wrote, 0, 0, false
	return nil
}

// trailer reads what is behind a member, and then the header of the next, if there is one: io.EOF.
func (d *inflater) trailer() error {
	d.align()
	sum, err := d.take(32)
	if err != nil {
		return err
	}
	size, err := d.take(32)
	if err != nil {
		return err
	}
	d.account()
	switch {
	case d.taken() > d.end:
		return io.ErrUnexpectedEOF
	case sum != d.sum || size != d.size:
		return errCorrupt
	}
	if d.taken() == d.end && d.more {
		d.pos, d.bits, d.count = d.end, 0, 0
		if err := d.fill(); err != nil {
			return err
		}
	}
	if d.taken() == d.end {
		return io.EOF
	}
	return d.header()
}

// account adds what was written to the sum.
func (d *inflater) account() {
	d.sum = crc32.Update(d.sum, crc32.IEEETable, d.out[d.summed:d.wrote])
	d.size += uint32(d.wrote - d.summed)
	d.summed = d.wrote
}

func (d *inflater) Read(p []byte) (int, error) {
	for d.read == d.wrote {
		if d.err != nil {
			return 0, d.err
		}
		if d.wrote > window {
			gone := d.wrote - window
			copy(d.out, d.out[gone:d.wrote])
			d.read, d.wrote, d.first, d.summed = window, window, max(d.first-gone, 0), window
		}
		d.err = d.write()
		d.account()
	}
	n := copy(p, d.out[d.read:d.wrote])
	d.read += n
	return n, nil
}

func (d *inflater) Close() error { return nil }

// write writes until there is no room in out.
func (d *inflater) write() error {
	for room := len(d.out) - matchMax - slack; d.wrote < room; {
		var err error
		switch {
		case d.coded:
			err = d.symbols(room)
		case d.left > 0:
			err = d.stored(room)
		case d.last:
			err = d.trailer()
		default:
			err = d.block()
		}
		if err != nil && d.taken() > d.end { // that was read of the zeros
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// block reads what is before a block.
func (d *inflater) block() error {
	h, err := d.take(3)
	if err != nil {
		return err
	}
	d.last = h&1 != 0
	switch h >> 1 {
	case 0:
		d.align()
		size, err := d.take(32)
		if err != nil {
			return err
		}
		if uint16(size) != ^uint16(size>>16) {
			return errCorrupt
		}
		d.left = int(size & 0xffff)
		return nil
	case 1:
		d.coded = true
		if d.fixed {
			return nil
		}
		d.fixed = true
		if err := codes(d.lit[:], litBits, fixedLengths[:], litSymbols[:]); err != nil {
			return err
		}
		var five [32]uint8
		for i := range five {
			five[i] = 5
		}
		return codes(d.dist[:], distBits, five[:], distSymbols[:])
	case 2:
		d.coded, d.fixed = true, false
		return d.tables()
	}
	return errCorrupt
}

// order is that of the lengths of the codes that lengths of codes have.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// tables reads the codes of a block.
func (d *inflater) tables() error {
	h, err := d.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, n := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if nlit > len(litSymbols) || ndist > len(distSymbols) {
		return errCorrupt
	}
	var of [19]uint8
	for _, i := range order[:n] {
		l, err := d.take(3)
		if err != nil {
			return err
		}
		of[i] = uint8(l)
	}
	if err := codes(d.length[:], lengthBits, of[:], lengthSymbols[:]); err != nil {
		return err
	}
	var lengths [286 + 30]uint8
	for i := 0; i < nlit+ndist; {
		if err := d.need(lengthBits); err != nil {
			return err
		}
		e := d.length[d.bits&(1<<lengthBits-1)]
		if e == 0 {
			return errCorrupt
		}
		d.bits >>= e & 63
		d.count -= uint(e & 63)
		symbol := uint8(e >> 16)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		again := [...]struct {
			bits uint
			min  uint32
		}{{2, 3}, {3, 3}, {7, 11}}[symbol-16]
		more, err := d.take(again.bits)
		if err != nil {
			return err
		}
		more += again.min
		value := uint8(0)
		if symbol == 16 {
			if i == 0 {
				return errCorrupt
			}
			value = lengths[i-1]
		}
		if int(more) > nlit+ndist-i {
			return errCorrupt
		}
		for ; more > 0; more-- {
			lengths[i] = value
			i++
		}
	}
	if err := codes(d.lit[:], litBits, lengths[:nlit], litSymbols[:]); err != nil {
		return err
	}
	return codes(d.dist[:], distBits, lengths[nlit:nlit+ndist], distSymbols[:])
}

// stored copies what is not compressed.
func (d *inflater) stored(room int) error {
	d.pos, d.bits, d.count = d.taken(), 0, 0
	if d.pos >= d.end {
		if !d.more {
			return io.ErrUnexpectedEOF
		}
		if err := d.fill(); err != nil {
			return err
		}
	}
	n := copy(d.out[d.wrote:room], d.in[d.pos:min(d.pos+d.left, d.end)])
	d.pos += n
	d.wrote += n
	d.left -= n
	return nil
}

// symbols reads symbols until the block ends or there is no room.
func (d *inflater) symbols(room int) (err error) {
	// In registers, not in memory.
	in, out, pos, wrote, bits, count := d.in, d.out, d.pos, d.wrote, d.bits, d.count
	for wrote < room {
		if pos > d.limit {
			d.pos, d.bits, d.count = pos, bits, count
			if err = d.fill(); err != nil {
				break
			}
			pos = d.pos
		}
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56
		e := d.lit[bits&(1<<litBits-1)]
		// Four literals have 44 bits at most.
		for range 4 {
			if e&isLiteral == 0 {
				break
			}
			out[wrote] = byte(e >> 16)
			wrote++
			bits >>= e & 63
			count -= uint(e & 63)
			e = d.lit[bits&(1<<litBits-1)]
		}
		if count < 48 { // what a match can have
			continue
		}
		if e&isLink != 0 {
			e = d.lit[uint64(e>>16)+bits>>litBits&(1<<(e>>8&15)-1)]
		}
		here := bits
		bits >>= e & 63
		count -= uint(e & 63)
		if e&isMatch == 0 {
			if e&isLiteral != 0 {
				out[wrote] = byte(e >> 16)
				wrote++
				continue
			}
			if d.coded = false; e&isEnd == 0 {
				err = errCorrupt
			}
			break
		}
		size := int(e>>16) + int(here&(1<<(e&63)-1)>>(e>>8&15))
		e = d.dist[bits&(1<<distBits-1)]
		if e&isLink != 0 {
			e = d.dist[uint64(e>>16)+bits>>distBits&(1<<(e>>8&15)-1)]
		}
		back := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&15))
		bits >>= e & 63
		count -= uint(e & 63)
		if e&isMatch == 0 || back > wrote-d.first {
			err = errCorrupt
			break
		}
		to, from := out[wrote:wrote+size+slack], out[wrote-back:]
		wrote += size
		if back < 8 {
			for i := range size {
				to[i] = from[i]
			}
			continue
		}
		for i := 0; i < size; i += 8 { // what is written beyond is written again
			binary.LittleEndian.PutUint64(to[i:], binary.LittleEndian.Uint64(from[i:]))
		}
	}
	d.pos, d.wrote, d.bits, d.count = pos, wrote, bits, count
	return err
}
