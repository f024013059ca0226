package store

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"time"
)

func TestCodec(t *testing.T) {
	t.Parallel()
	r := &record{Entry: Entry{Name: "a", Size: chunkSize + 1, Proof: Proof{"h1:x", true}, Stored: time.Now().UTC().Round(0), SHA256: [32]byte{1, 2}}, sums: []uint32{1, 2}}
	got, err := decodeRecord("a", r.encode())
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("decodeRecord = %+v, %v, want %+v", got, err, r)
	}
	for n := range len(r.encode()) {
		if got, err := decodeRecord("a", r.encode()[:n]); err == nil {
			t.Errorf("%d bytes of a record decode to %+v", n, got)
		}
	}
}

// What an older version has written stays readable.
func TestCodecOfVersion1(t *testing.T) {
	t.Parallel()
	r := &record{Entry: Entry{Name: "a", Size: 3, Proof: Proof{H1: "h1:x"}, Stored: time.Unix(5, 6).UTC(), SHA256: [32]byte{1}}, sums: []uint32{7}}
	b := r.encode()
	at := bytes.Index(b, []byte("h1:x")) + len("h1:x") // of the byte that version 1 lacks
	old := append(append([]byte{1}, b[1:at]...), b[at+1:]...)
	if got, err := decodeRecord("a", old); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v, want %+v", got, err, r)
	}
	old[0] = objectVersion + 1
	if got, err := decodeRecord("a", old); err == nil {
		t.Errorf("an unknown version decodes to %+v", got)
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	value := seal("b", "n", []byte("payload"))
	if got, err := unseal("b", "n", value); string(got) != "payload" || err != nil {
		t.Errorf("unseal = %q, %v", got, err)
	}
	for i := range value {
		bad := bytes.Clone(value)
		bad[i] ^= 4
		if _, err := unseal("b", "n", bad); err == nil {
			t.Errorf("unseal accepts a change of byte %d", i)
		}
	}
	for _, key := range [][2]string{{"b", "m"}, {"c", "n"}, {"", "bn"}} {
		if _, err := unseal(key[0], key[1], value); err == nil {
			t.Errorf("unseal accepts the value of another key as %q", key)
		}
	}
}

// FuzzRecord: whatever decodes is understood completely, so that it survives a
// second trip.
func FuzzRecord(f *testing.F) {
	f.Add((&record{Entry: Entry{Size: 3, Proof: Proof{H1: "h1:x"}, Stored: time.Unix(5, 6)}, sums: []uint32{7}}).encode())
	f.Add((&record{}).encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord("n", b)
		if err != nil {
			return
		}
		if r.Size < 0 || chunks(r.Size) != int64(len(r.sums)) {
			t.Errorf("%d sums for %d bytes", len(r.sums), r.Size)
		}
		again, err := decodeRecord("n", r.encode())
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("again = %+v, %v, want %+v", again, err, r)
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add(encodeDocument(Document{Body: []byte("b"), Fetched: time.Unix(5, 6), ETag: "e"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		doc, err := decodeDocument(b)
		if err != nil {
			return
		}
		again, err := decodeDocument(encodeDocument(doc))
		if err != nil || !reflect.DeepEqual(again, doc) {
			t.Errorf("again = %+v, %v, want %+v", again, err, doc)
		}
	})
}

// FuzzBranchPage: the walks past bbolt end and stay inside the page.
func FuzzBranchPage(f *testing.F) {
	pages := make([]byte, 3*256)
	for _, at := range []int{256, 512} { // each is the other's child
		binary.LittleEndian.PutUint16(pages[at+8:], branchFlag)
		binary.LittleEndian.PutUint16(pages[at+10:], 1)
		binary.LittleEndian.PutUint64(pages[at+pageHead+8:], uint64(3-at/256))
	}
	f.Add(pages, []byte("key"))
	f.Fuzz(func(t *testing.T, pages, key []byte) {
		tr := &tree{file: bytes.NewReader(pages), pageSize: 256, root: 1}
		_, _ = tr.checkPath(key), tr.checkAll()
	})
}
