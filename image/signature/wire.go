package signature

// Trust is whose signatures count: those by one of the keys, or those by a
// certificate of one of the authorities for one subject. All keys and certificates
// are PEM.
type Trust struct {
	Keys        []string `json:"keys,omitempty"`
	Authorities []string `json:"authorities,omitempty"`
	Issuer      string   `json:"issuer,omitempty"`  // who vouched for the subject: an OpenID Connect issuer
	Subject     string   `json:"subject,omitempty"` // an email address, or a URI
	// Logs are the keys of transparency logs. With any, a signature must be in one of
	// these logs; a certificate must have been valid when it came there.
	Logs []string `json:"logs,omitempty"`
}

// Signature is a signature as it was found, of which nothing has been verified.
// Either Bundle is set, or Payload and what follows it.
type Signature struct {
	// Origin says where it was found, for messages.
	Origin string `json:"-"`
	// Problem says why there is nothing to verify. "" means that there is.
	Problem string `json:"-"`

	Bundle []byte `json:"bundle,omitempty"` // a sigstore bundle: what is signed, and all that proves it

	Payload     []byte `json:"payload,omitempty"`     // what is signed, in the "simple signing" format
	Base64      string `json:"base64,omitempty"`      // the signature
	Certificate string `json:"certificate,omitempty"` // PEM; "" for a signature by a key
	Chain       string `json:"chain,omitempty"`       // PEM; certificates between that one and its root
	LogEntry    string `json:"logEntry,omitempty"`    // JSON: a transparency log's promise to have it
}

// SignPredicate is the type of a statement that just signs. Other statements in the bundle
// format say something about an image, as what it was built from.
const SignPredicate = "https://sigstore.dev/cosign/sign/v1"

// Request is what crid-verify gets on its standard input, as JSON.
type Request struct {
	Trust      Trust       `json:"trust"`
	Signatures []Signature `json:"signatures"`
}

// Verdict is what crid-verify says about one signature.
type Verdict struct {
	// Refused says why the signature does not count; "" means that it is good. The
	// other fields are set only then: they were signed.
	Refused string   `json:"refused,omitempty"`
	Digests []string `json:"digests,omitempty"` // of the manifests that it is for
	Name    string   `json:"name,omitempty"`    // of the image that it is for; "" when it has none
}

// Answer is what crid-verify writes to its standard output, as JSON: a verdict for
// each signature, in their order.
type Answer struct {
	Verdicts []Verdict `json:"verdicts"`
}

// Limits of what a registry can make crid fetch and crid-verify read.
const (
	MaxSignatures    = 100     // of one image
	MaxSignatureSize = 1 << 20 // bytes of a payload or a bundle
	maxAnswer        = 4 << 20 // bytes
)
