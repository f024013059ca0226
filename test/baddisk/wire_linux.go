package baddisk

import (
	"encoding/binary"
	"os"
	"syscall"
)

// Operations of the FUSE protocol (linux/fuse.h), version 7.31. Those that are missing here
// are answered with ENOSYS.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opFsyncdir    = 30
	opCreate      = 35
	opInterrupt   = 36
	opBatchForget = 42
	opRename2     = 45
)

const (
	headSize  = 40 // of a request
	maxWrite  = 128 << 10
	setSize   = 8 // of setattr's valid: the size is
	fhGiven   = 1 // of getattr's flags: by handle
	direntry  = 24
	nodeRoot  = 1
	fuseMinor = 31
)

// request is what the kernel asks.
type request struct {
	op     uint32
	unique uint64
	node   uint64
	body   []byte
}

func parse(b []byte) request {
	return request{
		op: binary.LittleEndian.Uint32(b[4:]), unique: binary.LittleEndian.Uint64(b[8:]), node: binary.LittleEndian.Uint64(b[16:]),
		body: b[headSize:],
	}
}

func (r *request) u32(at int) uint32 { return binary.LittleEndian.Uint32(r.body[at:]) }
func (r *request) u64(at int) uint64 { return binary.LittleEndian.Uint64(r.body[at:]) }

// names returns the strings from at on.
func (r *request) names(at int) (names []string) {
	from := at
	for i := at; i < len(r.body); i++ {
		if r.body[i] == 0 {
			names = append(names, string(r.body[from:i]))
			from = i + 1
		}
	}
	return append(names, "", "") // of a request without them
}

// reply is what the kernel gets.
type reply []byte

func (p *reply) u32(values ...uint32) {
	for _, v := range values {
		*p = binary.LittleEndian.AppendUint32(*p, v)
	}
}

func (p *reply) u64(values ...uint64) {
	for _, v := range values {
		*p = binary.LittleEndian.AppendUint64(*p, v)
	}
}

// attr describes a file; the kernel is to believe it at no time later.
func (p *reply) attr(info os.FileInfo) {
	st := info.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // package os has nothing else here
	p.u64(st.Ino, uint64(st.Size), uint64(st.Blocks), uint64(st.Atim.Sec), uint64(st.Mtim.Sec), uint64(st.Ctim.Sec))
	p.u32(uint32(st.Atim.Nsec), uint32(st.Mtim.Nsec), uint32(st.Ctim.Nsec), st.Mode, uint32(st.Nlink), st.Uid, st.Gid, 0, 4096, 0)
}

func (p *reply) entry(node uint64, info os.FileInfo) {
	p.u64(node, 0, 0, 0)
	p.u32(0, 0)
	p.attr(info)
}

func (p *reply) opened(handle uint64) {
	p.u64(handle)
	p.u32(0, 0)
}
