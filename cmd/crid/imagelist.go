package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/cridproject/crid/image"
)

// imageRow is one image as the commands show it; `crid image list --json` prints
// them as they stand here.
type imageRow struct {
	ID      string    `json:"id"`
	Tags    []string  `json:"tags"`
	Digests []string  `json:"digests"`
	Size    uint64    `json:"size"` // bytes of its files and its configuration
	Pinned  bool      `json:"pinned"`
	Pulled  time.Time `json:"pulled"`
}

func imageRows(images []image.Image) []imageRow {
	rows := make([]imageRow, 0, len(images))
	for _, i := range images {
		rows = append(rows, imageRow{
			string(i.ID), append([]string{}, i.RepoTags...), append([]string{}, i.RepoDigests...), i.Size, i.Pinned, i.Pulled,
		})
	}
	return rows
}

// names are all the image has, tags first.
func (r *imageRow) names() []string { return slices.Concat(r.Tags, r.Digests) }

func noImage(ref string) error {
	return fmt.Errorf("no image %s; `crid image list` shows those there are", ref)
}

// listImages prints a line for each tag, those of one image one below the other. An
// image without tags is shown by a name that can be used.
func (p program) listImages(ctx context.Context, store images, a imageArgs) error {
	rows, err := store.List(ctx)
	if err != nil {
		return err
	}
	if a.json {
		e := json.NewEncoder(p.out)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	slices.SortStableFunc(rows, func(a, b imageRow) int { return slices.Compare(a.names(), b.names()) })
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tIMAGE ID\tSIZE\tPULLED\tPINNED")
	for _, r := range rows {
		shown := r.Tags
		if a.digests || len(shown) == 0 {
			shown = r.names()
		}
		if len(shown) == 0 {
			shown = []string{"<none>"}
		}
		pinned := "no"
		if r.Pinned {
			pinned = "yes"
		}
		for _, name := range shown {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s ago\t%s\n", name, shortID(strings.TrimPrefix(r.ID, "sha256:")),
				units.HumanSize(float64(r.Size)), strings.ToLower(units.HumanDuration(time.Since(r.Pulled))), pinned)
		}
	}
	return w.Flush()
}

// removeImages removes what can be, and says of each what became of it.
func (p program) removeImages(ctx context.Context, store images, a imageArgs) error {
	var errs []error
	for _, ref := range a.rest {
		row, err := store.Remove(ctx, ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(p.out, "removed %s %s\n", row.ID, strings.Join(row.names(), " "))
	}
	return errors.Join(errs...)
}

// shortID is an ID as tables show it.
func shortID(id string) string {
	const n = 13
	if len(id) > n {
		return id[:n]
	}
	return id
}
