package ring

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// seed is "ringmod" and the algorithm number. It may never change: with another
// seed every key of every cluster lies in another partition and every partition
// on other nodes, so that all copies are lost at once to those that look.
const seed = 0x72696e676d6f6401

// First bytes of what is hashed, so that no two uses hash the same bytes.
const (
	domainVersion    = "\x01"
	domainModule     = "\x02"
	domainSumdb      = "\x03"
	domainNode       = 0x10
	domainRegion     = 0x11
	domainSpec       = 0x20
	domainMembership = 0x21
)

// hasher is H of the package comment. It has the form that consistent asks for.
type hasher struct{}

func (hasher) Sum64(b []byte) uint64 {
	d := newDigest()
	_, _ = d.Write(b)
	return d.Sum64()
}

func newDigest() xxhash.Digest {
	var d xxhash.Digest
	d.ResetWithSeed(seed)
	return d
}

// hashStrings is H of the parts, joined, without joining them.
func hashStrings(parts ...string) uint64 {
	d := newDigest()
	for _, part := range parts {
		_, _ = d.WriteString(part)
	}
	return d.Sum64()
}

// hashScore is the h of rendezvous hashing: one draw for each name in each
// partition.
func hashScore(domain byte, p Partition, name string) uint64 {
	d := newDigest()
	_, _ = d.Write([]byte{domain, byte(p >> 8), byte(p)})
	_, _ = d.WriteString(name)
	return d.Sum64()
}

// appendString appends s with its length before it, so that two lists of
// strings never have one encoding.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
