package sumdb

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

const (
	tileHeight = 8 // what databases serve and the go command asks for
	fullWidth  = 1 << tileHeight
	maxLevel   = 64/tileHeight - 1
)

// place is where a tile stands, whatever its width.
type place struct {
	level int
	n     int64
}

func placeOf(t tlog.Tile) place { return place{t.L, t.N} }

// at returns the tile at p that is w hashes wide.
func (p place) at(w int) tlog.Tile { return tlog.Tile{H: tileHeight, L: p.level, N: p.n, W: w} }

// width returns how wide the tile at p is in a tree of size records; 0 when
// there is none. A data tile is as wide as the hash tile of its records.
func (p place) width(size int64) int {
	return int(min(max(size>>(tileHeight*max(p.level, 0))-p.n<<tileHeight, 0), fullWidth))
}

// Tile returns a hash tile or a data tile. It is cut from what is stored, else
// fetched, proven and stored. Of a tile that reaches beyond the newest head, the
// head is asked for first, at most once a second; if the tile still does, the
// reason is Broken when the tree may soon have grown to it and NotFound when it is
// far away.
func (d *DB) Tile(ctx context.Context, t target.Target) ([]byte, error) {
	tile, err := tlog.ParseTilePath(t.Rest)
	if err != nil || t.Kind != target.SumdbTile || t.DB != d.name {
		return nil, &cache.Error{Reason: cache.Malformed, Text: t.Describe() + " is not a tile of " + d.name}
	}
	if tile.L > maxLevel || tile.N > maxRecords>>tileHeight {
		return nil, d.tooFar(tile)
	}
	if tile.L < 0 {
		return d.dataTile(ctx, tile)
	}
	if data := d.stored(ctx, tile); data != nil {
		return data, nil
	}
	return d.admit(ctx, "prove "+t.Rest, func(ctx context.Context) ([]byte, error) {
		if data := d.stored(ctx, tile); data != nil { // since we looked
			return data, nil
		}
		return d.proven(ctx, tile)
	})
}

// proven returns a hash tile, proven against the newest head.
func (d *DB) proven(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	tree, err := d.covering(ctx, tile)
	if err != nil {
		return nil, err
	}
	r, err := d.prove(ctx, tree, func(r tlog.HashReader) error {
		_, err := r.ReadHashes([]int64{tlog.StoredHashIndex(tileHeight*tile.L, tile.N<<tileHeight)})
		return err
	})
	if err != nil {
		return nil, err
	}
	r.finish(true)
	size := tile.W * tlog.HashSize
	return r.proven[placeOf(tile)][:size:size], nil
}

// covering returns the newest tree, which holds the whole tile.
func (d *DB) covering(ctx context.Context, tile tlog.Tile) (tree tlog.Tree, err error) {
	for _, refresh := range []bool{false, true} {
		if refresh {
			err = d.refresh(ctx, latestPause)
		}
		now, headErr := d.current(ctx)
		if err = cmp.Or(err, headErr); err != nil {
			return tlog.Tree{}, err
		}
		if placeOf(tile).width(now.N) >= tile.W {
			return now.Tree, nil
		}
		tree = now.Tree
	}
	if tile.N > tree.N>>(tileHeight*(max(tile.L, 0)+1)) {
		return tlog.Tree{}, d.tooFar(tile)
	}
	return tlog.Tree{}, &cache.Error{
		Reason: cache.Broken, Source: d.name, RetryAfter: latestPause,
		Text: tile.Path() + " is not complete yet: the newest tree head seen here is older",
	}
}

func (d *DB) tooFar(tile tlog.Tile) error {
	return &cache.Error{Reason: cache.NotFound, Source: d.name, Text: tile.Path() + " is beyond the tree"}
}

// stored returns a hash tile from memory or storage, cut from a wider one if
// need be, or nil.
func (d *DB) stored(ctx context.Context, tile tlog.Tile) []byte {
	size := tile.W * tlog.HashSize
	if data, ok := d.tiles.get(placeOf(tile)); ok && len(data) >= size {
		return data[:size:size]
	}
	for _, w := range d.widths(ctx, tile) {
		data := d.load(ctx, placeOf(tile).at(w).Path())
		if len(data) == w*tlog.HashSize {
			d.tiles.put(placeOf(tile), data)
			return data[:size:size]
		}
	}
	return nil
}

// widths returns those under which a tile as wide as asked may be stored, in
// the order to try them. All that is partial in the tree of the newest head is
// stored as wide as there, so no others need be tried.
func (d *DB) widths(ctx context.Context, tile tlog.Tile) []int {
	widths := []int{tile.W}
	if now, err := d.current(ctx); err == nil {
		if w := placeOf(tile).width(now.N); w > tile.W && w < fullWidth {
			widths = append(widths, w)
		}
	}
	if tile.W < fullWidth {
		widths = append(widths, fullWidth)
	}
	return widths
}

// prove runs read on the hashes of tree, which come from tiles that are proven
// to be in it. When stored tiles turn out damaged, all are fetched anew. Unless
// there is an error the caller calls finish.
func (d *DB) prove(ctx context.Context, tree tlog.Tree, read func(tlog.HashReader) error) (*tileReader, error) {
	r := &tileReader{ctx: ctx, db: d}
	err := read(tlog.TileHashReader(tree, r))
	if err != nil && r.err == nil && r.fromStore {
		d.log.WarnContext(ctx, "stored tiles do not fit the tree, fetching them anew", "err", err)
		r.finish(false)
		r = &tileReader{ctx: ctx, db: d, anew: true}
		err = read(tlog.TileHashReader(tree, r))
	}
	if err == nil {
		return r, nil
	}
	r.finish(false)
	if r.err != nil {
		return nil, r.err
	}
	return nil, d.mismatch("its tiles do not fit its signed tree head", err)
}

// tileReader is the tlog.TileReader of one proof. That interface passes no
// context, so the reader holds the one of the call that it lives in.
type tileReader struct {
	ctx    context.Context //nolint:containedctx // of one call, see above
	db     *DB
	anew   bool // read nothing from the store
	proven map[place][]byte

	mu        sync.Mutex // guards what follows while tiles are read in parallel
	fetched   []tlog.Tile
	fromStore bool
	err       error // why reading failed, as opposed to proving
}

// Height implements tlog.TileReader.
func (r *tileReader) Height() int { return tileHeight }

// ReadTiles implements tlog.TileReader.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	var group sync.WaitGroup
	for i, tile := range tiles {
		group.Go(func() { data[i] = r.readTile(tile) })
	}
	group.Wait()
	return data, r.err
}

func (r *tileReader) readTile(tile tlog.Tile) []byte {
	if !r.anew {
		if data := r.db.stored(r.ctx, tile); data != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.fromStore = true
			return data
		}
	}
	data, err := r.db.shared(r.ctx, "fetch "+tile.Path(), func(ctx context.Context) ([]byte, error) {
		if data, ok := r.db.fetchedBefore(tile); ok && !r.anew {
			return data, nil
		}
		return r.db.fetchTile(ctx, tile)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = cmp.Or(r.err, err)
	r.fetched = append(r.fetched, tile)
	return data
}

// SaveTiles implements tlog.TileReader: it is told of the tiles that are proven.
func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	r.proven = make(map[place][]byte, len(tiles))
	for i, tile := range tiles {
		r.proven[placeOf(tile)] = data[i]
	}
}

// finish ends the proof. With keep, the tree is known to be ours, and the tiles
// that had to be fetched are stored.
func (r *tileReader) finish(keep bool) {
	var group sync.WaitGroup
	for _, tile := range r.fetched {
		group.Go(func() {
			if keep {
				r.keep(tile)
			}
			r.db.pending.remove(tile)
		})
	}
	group.Wait()
}

func (r *tileReader) keep(tile tlog.Tile) {
	data := r.proven[placeOf(tile)]
	if known, _ := r.db.tiles.get(placeOf(tile)); len(known) >= len(data) && !r.anew {
		return // somebody else stored it before it came to memory
	}
	r.db.save(r.ctx, tile.Path(), data)
	r.db.tiles.put(placeOf(tile), data)
}

// fetchedBefore returns a tile that came while the caller was looking elsewhere,
// so that it is not fetched twice.
func (d *DB) fetchedBefore(tile tlog.Tile) ([]byte, bool) {
	if data, ok := d.pending.get(tile); ok {
		return data, true
	}
	data, _ := d.tiles.get(placeOf(tile))
	size := tile.W * tlog.HashSize
	if len(data) < size {
		return nil, false
	}
	return data[:size:size], true
}

// fetchTile fetches a hash tile, yet to be proven.
func (d *DB) fetchTile(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	data, got, err := d.fetchWide(ctx, tile)
	if err != nil {
		return nil, err
	}
	if len(data) != got.W*tlog.HashSize {
		return nil, d.broken("%s has %d bytes instead of %d", got.Path(), len(data), got.W*tlog.HashSize)
	}
	data = data[:tile.W*tlog.HashSize]
	d.pending.put(tile, data)
	return data, nil
}

// fetchWide fetches a tile, or the full one in place of a partial one that is
// no longer served.
func (d *DB) fetchWide(ctx context.Context, tile tlog.Tile) ([]byte, tlog.Tile, error) {
	data, err := d.fetch(ctx, tile.Path())
	full := placeOf(tile).at(fullWidth)
	if reason := cache.ReasonOf(err); err == nil || tile == full || !reason.Absent() && reason != cache.Denied {
		return data, tile, err
	}
	if data, fullErr := d.fetch(ctx, full.Path()); fullErr == nil {
		return data, full, nil
	}
	return nil, tile, err
}

// dataTile returns a tile of records.
func (d *DB) dataTile(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	if data := d.storedRecords(ctx, tile); data != nil {
		return data, nil
	}
	return d.admit(ctx, "prove "+tile.Path(), func(ctx context.Context) ([]byte, error) {
		if data := d.storedRecords(ctx, tile); data != nil { // since we looked
			return data, nil
		}
		return d.provenRecords(ctx, tile)
	})
}

// storedRecords returns a data tile from storage, or nil.
func (d *DB) storedRecords(ctx context.Context, tile tlog.Tile) []byte {
	for _, w := range d.widths(ctx, tile) {
		if data, ok := cutRecords(d.load(ctx, placeOf(tile).at(w).Path()), w, tile.W); ok {
			return data
		}
	}
	return nil
}

// provenRecords fetches a data tile and compares it with the proven hash tile.
func (d *DB) provenRecords(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	hashes, err := d.proven(ctx, place{0, tile.N}.at(tile.W))
	if err != nil {
		return nil, err
	}
	data, got, err := d.fetchWide(ctx, tile)
	if err != nil {
		return nil, err
	}
	data, ok := cutRecords(data, got.W, tile.W)
	if !ok {
		return nil, d.broken("%s does not hold %d records", got.Path(), got.W)
	}
	if err := checkRecords(data, hashes); err != nil {
		return nil, d.mismatch(tile.Path()+" does not fit the signed tree head", err)
	}
	d.save(ctx, tile.Path(), data)
	return data, nil
}

// cutRecords returns the first n of have records in a data tile, which are
// texts with a blank line behind each.
func cutRecords(data []byte, have, n int) (head []byte, ok bool) {
	if bytes.Count(data, blankLine) != have || !bytes.HasSuffix(data, blankLine) {
		return nil, false
	}
	end := 0
	for range n {
		end += bytes.Index(data[end:], blankLine) + len(blankLine)
	}
	return data[:end], true
}

var (
	blankLine     = []byte("\n\n")
	errRecordHash = errors.New("a record has another hash")
)

// checkRecords compares the records of a data tile with a tile of their hashes.
func checkRecords(data, hashes []byte) error {
	for len(data) > 0 {
		end := bytes.Index(data, blankLine)
		hash := tlog.RecordHash(data[:end+1])
		if !bytes.Equal(hash[:], hashes[:tlog.HashSize]) {
			return errRecordHash
		}
		data, hashes = data[end+len(blankLine):], hashes[tlog.HashSize:]
	}
	return nil
}

// keepEdge stores the tiles at the right edge of the tree of h at the width that
// they have there. We cut them from wider ones when asked, but a go command that
// reads the stored files themselves (GOPROXY=file://) asks for exactly these.
func (d *DB) keepEdge(ctx context.Context, h *head) {
	if _, ok := d.edges.get(h.N); ok {
		return
	}
	whole := true
	for level := 0; h.N>>(tileHeight*level) > 0; level++ {
		p := place{level, h.N >> (tileHeight * (level + 1))}
		w := p.width(h.N)
		if w == 0 || w == fullWidth || d.load(ctx, p.at(w).Path()) != nil {
			continue
		}
		if data := d.stored(ctx, p.at(w)); data != nil {
			d.save(ctx, p.at(w).Path(), data)
		} else {
			whole = false
		}
	}
	if whole {
		d.edges.put(h.N, struct{}{})
	}
}
