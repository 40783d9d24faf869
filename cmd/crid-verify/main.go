// crid-verify verifies signatures for crid: a request on standard input, an answer on
// standard output, both JSON (image/signature.Request, .Answer). crid starts it for
// each pull that a signature policy asks signatures of, so that the libraries for them
// are not in crid's memory (docs/decisions/0023-signatures.md). It opens no file and no
// connection.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/image/signature/sigstore"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "crid-verify: %v\n", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	// A field that is not known could be one that forbids.
	d.DisallowUnknownFields()
	var req signature.Request
	if err := d.Decode(&req); err != nil {
		return fmt.Errorf("request: %w; crid starts this program itself", err)
	}
	a, err := sigstore.Verify(req)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}
