package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// The values of the index. Each is sealed: the payload is followed by the
// CRC-32C (4 bytes, little endian) of bucket, 0, name, 0 and payload, so that a
// damaged value, key or page structure never passes for an entry.
//
//	object   = 2 size(uvarint) stored h1(string) verified(1 byte) sha256(32 bytes) crc32c(4 bytes each)
//	key      = 1 digest(8 bytes, little endian) size(uvarint) stored
//	document = 1 fetched etag(string) last_modified(string) source(string) body(rest)
//	time     = seconds(varint) nanoseconds(uvarint)
//	string   = length(uvarint) bytes
//
// An object has one crc32c, little endian, for each begun chunk of chunkSize bytes;
// verified is 0 or 1. Objects of version 1 have no such byte: nobody knows.
const (
	documentVersion = 1
	keyVersion      = 1
	objectVersion   = 2
)

const chunkSize = 128 << 10

var errCodec = errors.New("not a valid index entry")

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// record is what the index knows of an object.
type record struct {
	Entry
	sums []uint32 // CRC-32C of each chunk
}

func chunks(size int64) int64 { return (size + chunkSize - 1) / chunkSize }

func sealSum(bucket, name string, payload []byte) uint32 {
	head := make([]byte, 0, 256)
	head = append(append(append(append(head, bucket...), 0), name...), 0)
	return crc32.Update(crc32.Checksum(head, castagnoli()), castagnoli(), payload)
}

func seal(bucket, name string, payload []byte) []byte {
	return binary.LittleEndian.AppendUint32(payload, sealSum(bucket, name, payload))
}

func unseal(bucket, name string, value []byte) ([]byte, error) {
	n := len(value) - 4
	if n < 0 || sealSum(bucket, name, value[:n]) != binary.LittleEndian.Uint32(value[n:]) {
		return nil, errCodec
	}
	return value[:n], nil
}

func (r *record) encode() []byte {
	b := make([]byte, 0, 128+4*len(r.sums))
	b = append(b, objectVersion)
	b = binary.AppendUvarint(b, uint64(r.Size))
	b = appendTime(b, r.Stored)
	b = appendString(b, r.H1)
	if r.Verified {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, r.SHA256[:]...)
	for _, sum := range r.sums {
		b = binary.LittleEndian.AppendUint32(b, sum)
	}
	return b
}

// write returns what puts r into the index.
func (r *record) write() *indexWrite {
	return &indexWrite{bucket: bucketObjects, name: r.Name, value: seal(bucketObjects, r.Name, r.encode())}
}

// decodeRecord copies what it keeps of b.
func decodeRecord(name string, b []byte) (*record, error) {
	d := decoder{rest: b}
	version := d.version(objectVersion)
	r := &record{Entry: Entry{Name: name, Size: int64(d.uvarint()), Stored: d.time(), Proof: Proof{H1: d.string()}}}
	if version > 1 {
		r.Verified = d.bool()
	}
	copy(r.SHA256[:], d.bytes(len(r.SHA256)))
	if d.bad || r.Size < 0 || len(d.rest)%4 != 0 || chunks(r.Size) != int64(len(d.rest)/4) {
		return nil, errCodec
	}
	r.sums = make([]uint32, len(d.rest)/4)
	for i := range r.sums {
		r.sums[i] = binary.LittleEndian.Uint32(d.rest[4*i:])
	}
	return r, nil
}

func encodeDocument(doc Document) []byte {
	b := make([]byte, 0, 128+len(doc.Body))
	b = appendTime(append(b, documentVersion), doc.Fetched)
	for _, s := range []string{doc.ETag, doc.LastModified, doc.Source} {
		b = appendString(b, s)
	}
	return append(b, doc.Body...)
}

// decodeDocument copies what it keeps of b.
func decodeDocument(b []byte) (Document, error) {
	d := decoder{rest: b}
	d.version(documentVersion)
	doc := Document{Fetched: d.time(), ETag: d.string(), LastModified: d.string(), Source: d.string()}
	if d.bad {
		return Document{}, errCodec
	}
	doc.Body = append([]byte{}, d.rest...)
	return doc, nil
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, t.Unix()), uint64(t.Nanosecond()))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads from the front of rest. After the first thing that does not fit,
// bad is set and all it returns is zero.
type decoder struct {
	rest []byte
	bad  bool
}

// version returns the version of the value, which is at most newest.
func (d *decoder) version(newest byte) byte {
	v := d.bytes(1)
	if d.bad || v[0] < 1 || v[0] > newest {
		d.fail()
		return 0
	}
	return v[0]
}

func (d *decoder) bool() bool {
	v := d.bytes(1)
	if d.bad || v[0] > 1 {
		d.fail()
		return false
	}
	return v[0] == 1
}

func (d *decoder) fail() { d.rest, d.bad = nil, true }

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.fail()
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	d.skip(n)
	return v
}

func (d *decoder) skip(n int) {
	if n <= 0 {
		d.fail()
		return
	}
	d.rest = d.rest[n:]
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return ""
	}
	return string(d.bytes(int(n)))
}

func (d *decoder) time() time.Time {
	sec, n := binary.Varint(d.rest)
	d.skip(n)
	nsec := d.uvarint()
	if nsec >= 1e9 {
		d.fail()
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}
