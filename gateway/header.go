package gateway

import (
	"encoding/hex"
	"net/http"
	"strconv"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// outcome is the word for what the cache did, in access lines and metrics.
type outcome uint8

const (
	bypass outcome = iota // the cache was not asked
	hit
	miss
	coalesced
	stale
	outcomes
)

var outcomeNames = [outcomes]string{bypass: "bypass", hit: "hit", miss: "miss", coalesced: "coalesced", stale: "stale"}

func (o outcome) String() string { return outcomeNames[o] }

// Header values that never change, as net/http keeps them: a request on the hot
// path makes none.
var (
	nosniff     = []string{"nosniff"}
	plainText   = []string{"text/plain; charset=utf-8"}
	acceptBytes = []string{"bytes"}
	passing     = []string{noStore}
)

const noStore = "no-store"

// kindHeader is what the answers of one kind have in common.
type kindHeader struct {
	contentType []string
	public      []string // Cache-Control
	private     []string
}

func newKindHeader(contentType, caching string) kindHeader {
	return kindHeader{[]string{contentType}, []string{"public, " + caching}, []string{"private, " + caching}}
}

var kindHeaders = [...]kindHeader{
	target.List:           newKindHeader("text/plain; charset=utf-8", "max-age=60, must-revalidate"),
	target.Latest:         newKindHeader("application/json", "max-age=60, must-revalidate"),
	target.Query:          newKindHeader("application/json", "max-age=60, must-revalidate"),
	target.Info:           newKindHeader("application/json", "max-age=604800"),
	target.Mod:            newKindHeader("text/plain; charset=utf-8", "max-age=604800, immutable"),
	target.Zip:            newKindHeader("application/zip", "max-age=604800, immutable"),
	target.SumdbSupported: newKindHeader("text/plain; charset=UTF-8", "max-age=60"),
	target.SumdbLatest:    newKindHeader("text/plain; charset=UTF-8", "max-age=60"),
	target.SumdbLookup:    newKindHeader("text/plain; charset=UTF-8", "max-age=86400"),
	target.SumdbTile:      newKindHeader("application/octet-stream", "max-age=86400"),
}

// header holds the values of an answer's headers, ready to be sent many times.
// nil values are not sent.
type header struct {
	contentType, cacheControl, etag, lastModified, length []string

	own     *[3]string // the last three
	modTime time.Time  // zero where Last-Modified is not sent
	ranges  bool       // whole and seekable
}

// newHeader prepares the headers for obj.
func newHeader(kind target.Kind, obj *cache.Object, private bool) header {
	common := &kindHeaders[kind]
	h := header{contentType: common.contentType, cacheControl: common.public}
	switch {
	case obj.Unverified:
		h.cacheControl = passing
	case private:
		h.cacheControl = common.private
	}
	if obj.SHA256 != ([32]byte{}) {
		h.etag = h.value(0, `"`+hex.EncodeToString(obj.SHA256[:])+`"`)
	}
	if (kind == target.Mod || kind == target.Zip) && !obj.ModTime.IsZero() {
		h.modTime = obj.ModTime
		h.lastModified = h.value(1, obj.ModTime.UTC().Format(http.TimeFormat))
	}
	if obj.Size >= 0 {
		h.length = h.value(2, strconv.FormatInt(obj.Size, 10))
	}
	return h
}

// value keeps the value of a header that only this answer has. All of them share one
// allocation, as many answers are kept in memory.
func (h *header) value(i int, text string) []string {
	if h.own == nil {
		h.own = new([3]string)
	}
	h.own[i] = text
	return h.own[i : i+1 : i+1]
}

// set writes h into to, apart from what ServeContent sets.
func (h *header) set(to http.Header) {
	to["Content-Type"] = h.contentType
	to["Cache-Control"] = h.cacheControl
	to["X-Content-Type-Options"] = nosniff
	if h.etag != nil {
		to["Etag"] = h.etag
	}
}

// setWhole writes what belongs to an answer with all of the bytes.
func (h *header) setWhole(to http.Header) {
	if h.lastModified != nil {
		to["Last-Modified"] = h.lastModified
	}
	if h.length != nil {
		to["Content-Length"] = h.length
	}
	if h.ranges {
		to["Accept-Ranges"] = acceptBytes
	}
}

// setAge sets Age (RFC 9111, 5.1).
func setAge(to http.Header, age time.Duration) {
	to["Age"] = []string{strconv.FormatInt(max(0, int64(age/time.Second)), 10)}
}

// origin is where the bytes of an answer came from, as Cache-Status
// (RFC 9211) and the access line tell it.
type origin struct {
	status  []string
	outcome outcome
}

var sources = [...]origin{
	cache.Memory:   {[]string{"ringmod; hit; detail=memory"}, hit},
	cache.Disk:     {[]string{"ringmod; hit; detail=disk"}, hit},
	cache.Inflight: {[]string{"ringmod; fwd=miss; collapsed; detail=inflight"}, coalesced},
	cache.Peer:     {[]string{"ringmod; hit; detail=peer"}, hit},
	cache.Region:   {[]string{"ringmod; hit; detail=region"}, hit},
	cache.Upstream: {[]string{"ringmod; fwd=miss; stored; detail=upstream"}, miss},
}

// originOf describes where obj came from; a source without a name counts as a miss.
func originOf(obj *cache.Object) origin {
	switch source := obj.Source; {
	case obj.Stale:
		return origin{[]string{"ringmod; fwd=stale; detail=" + source.String()}, stale}
	case obj.Single:
		return origin{[]string{`ringmod; fwd=miss; detail="` + source.String() + `, one copy"`}, miss}
	case source == 0 || int(source) >= len(sources) || obj.Unverified:
		return origin{[]string{"ringmod; fwd=miss; detail=" + source.String()}, miss}
	default:
		return sources[source]
	}
}

func (x *exchange) setOrigin(o origin) {
	x.Header()["Cache-Status"] = o.status
	x.outcome = o.outcome
}
