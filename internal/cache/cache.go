// Package cache is the vocabulary between those who ask for objects (a
// gateway) and those who hold them (a node, a cluster of nodes): what a
// request says, what an answer holds and which ways there are to fail.
//
// It holds no behaviour. The interface that a gateway asks through is declared
// by the gateway.
package cache

import (
	"io"
	"time"

	"github.com/ringmod/ringmod/internal/target"
)

// Mode says how far the holder may go to answer.
type Mode uint8

// The modes, from the most to the least that the holder may do.
const (
	AllowFill    Mode = iota // on a miss fill, by way of the home coordinator or from upstream
	Coordinate               // on a miss fill from upstream itself, never by way of another node
	OnlyIfCached             // join a fill that is already running, never start one
	Peek                     // read the disk only
)

// Request asks for one object.
type Request struct {
	Target target.Target
	Mode   Mode
	// Whole asks the holder to answer only when the object is complete and
	// verified, so that size and digest are known and Body can seek. HEAD,
	// ranges and conditional requests need it.
	Whole bool
	// Hops is how many nodes have passed the request on. A node passes on only
	// what none has.
	Hops int
	// Refresh is the number of the latest order to refresh the module that the asker
	// knows (package refresh); 0: none. Nobody answers from before it.
	Refresh uint64
}

// Source says where an answer came from.
type Source uint8

// The sources, nearest first.
const (
	Memory   Source = iota + 1 // the gateway's own memory
	Disk                       // a node's disk
	Inflight                   // a fill that somebody else had started
	Peer                       // another node of the region
	Region                     // another region
	Upstream                   // fetched for this request
)

var sourceNames = [...]string{Memory: "memory", Disk: "disk", Inflight: "inflight", Peer: "peer", Region: "region", Upstream: "upstream"}

// String returns the word for s in headers, logs and metrics.
func (s Source) String() string {
	if int(s) < len(sourceNames) && s > 0 {
		return sourceNames[s]
	}
	return "unknown"
}

// Object is the answer to a Request. The caller closes Body.
type Object struct {
	Size    int64     // bytes; -1 while a fill has not learnt it
	SHA256  [32]byte  // of the bytes; zero while the object is being filled
	ModTime time.Time // when the object was stored; zero while it is being filled

	// H1 is the module hash of a zip or go.mod as in go.sum, and Verified that a
	// checksum database has confirmed it. Both are empty while the object is being
	// filled, see Proof below.
	H1       string
	Verified bool

	// Unverified says that an immutable object came past all nodes, whose work it is
	// to verify it: nobody may keep it, nor tell others that they may.
	Unverified bool

	// For what is mutable: how long ago upstream said so, how long from now it
	// counts as fresh, and whether it is served beyond that.
	Age   time.Duration
	TTL   time.Duration
	Stale bool

	// Single says that a second node was to have the object before it counts as stored
	// (--durability 2), and that none has taken it yet.
	Single bool

	Private bool // matches the private patterns: shared caches must not keep it
	Source  Source

	// Body yields the bytes. It may have more abilities, found by assertion:
	//   - an *os.File or another io.ReadSeeker: the object is complete and
	//     verified and Body stands at its start;
	//   - io.WriterTo: a fill that hands its bytes on as they come;
	//   - Proof() (h1 string, verified bool): H1 and Verified as the end of a fill
	//     has shown them, once a read has met io.EOF.
	// A read from a fill that fails returns an *Error, never io.EOF: who copies
	// Body must abort what it has begun to answer, not end it.
	Body io.ReadCloser
}
