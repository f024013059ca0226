package verify

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// part is an entry of a zip that is put together by hand.
type part struct {
	content    string
	before     string // bytes before the local header
	method     uint16
	descriptor string // "", or of "signed", "bare", "signed64", "bare64"
	wide       bool   // lengths in a zip64 field of the local header
	slack      string // behind the compressed data, counted in
	hidden     bool   // not in the directory
}

func (p part) packed() []byte {
	if p.method == zip.Store {
		return []byte(p.content)
	}
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 6)
	_, _ = io.WriteString(w, p.content)
	w.Close()
	return append(b.Bytes(), p.slack...)
}

func (p part) local(name string, crc uint32, packed, size int) []byte {
	le := binary.LittleEndian
	h := le.AppendUint32(nil, localSignature)
	flags, extra := 0, []byte(nil)
	declared := [2]uint32{uint32(packed), uint32(size)}
	if p.descriptor != "" {
		flags, crc, declared = described, 0, [2]uint32{}
	}
	if p.wide {
		declared = [2]uint32{1<<32 - 1, 1<<32 - 1}
		extra = append(extra, 0x99, 0x99, 1, 0, 0, 1, 0, 16, 0)
		extra = le.AppendUint64(le.AppendUint64(extra, uint64(size)), uint64(packed))
	}
	for _, v := range []uint16{20, uint16(flags), p.method, 0, 0} {
		h = le.AppendUint16(h, v)
	}
	for _, v := range []uint32{crc, declared[0], declared[1]} {
		h = le.AppendUint32(h, v)
	}
	h = le.AppendUint16(le.AppendUint16(h, uint16(len(name))), uint16(len(extra)))
	return append(append(h, name...), extra...)
}

func (p part) tail(crc uint32, packed, size int) []byte {
	le := binary.LittleEndian
	if p.descriptor == "" {
		return nil
	}
	var d []byte
	if strings.HasPrefix(p.descriptor, "signed") {
		d = le.AppendUint32(d, 0x08074b50)
	}
	d = le.AppendUint32(d, crc)
	if strings.HasSuffix(p.descriptor, "64") {
		return le.AppendUint64(le.AppendUint64(d, uint64(packed)), uint64(size))
	}
	return le.AppendUint32(le.AppendUint32(d, uint32(packed)), uint32(size))
}

func (p part) central(name string, crc uint32, packed, size, at int) []byte {
	le := binary.LittleEndian
	h := le.AppendUint32(nil, 0x02014b50)
	flags := 0
	if p.descriptor != "" {
		flags = described
	}
	for _, v := range []uint16{20, 20, uint16(flags), p.method, 0, 0} {
		h = le.AppendUint16(h, v)
	}
	for _, v := range []uint32{crc, uint32(packed), uint32(size)} {
		h = le.AppendUint32(h, v)
	}
	h = le.AppendUint16(h, uint16(len(name)))
	h = le.AppendUint32(append(h, make([]byte, 12)...), uint32(at))
	return append(h, name...)
}

// assemble makes a zip of parts, whose directory has the order that shuffle gives,
// with bytes before and behind everything. Offsets count from the first part.
func assemble(parts []part, shuffle func([][]byte), before, behind string) []byte {
	var b []byte
	var directory [][]byte
	for i, p := range parts {
		name := fmt.Sprintf("%s/f%d", aheadModule.String(), i)
		packed, crc := p.packed(), crc32.ChecksumIEEE([]byte(p.content))
		b = append(b, p.before...)
		if !p.hidden {
			directory = append(directory, p.central(name, crc, len(packed), len(p.content), len(b)))
		}
		b = append(b, p.local(name, crc, len(packed), len(p.content))...)
		b = append(append(b, packed...), p.tail(crc, len(packed), len(p.content))...)
	}
	shuffle(directory)
	start, all := len(b), bytes.Join(directory, nil)
	le := binary.LittleEndian
	end := le.AppendUint32(append(b, all...), 0x06054b50)
	end = append(end, 0, 0, 0, 0)
	end = le.AppendUint16(le.AppendUint16(end, uint16(len(directory))), uint16(len(directory)))
	end = le.AppendUint32(le.AppendUint32(end, uint32(len(all))), uint32(start))
	end = le.AppendUint16(end, uint16(len(behind)))
	return append(append([]byte(before), end...), behind...)
}
