package main

import (
	"bytes"
	"encoding/base64"
	stdjson "encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

var (
	// Strict: a misspelt field would be missing from the bytes without a word.
	fromJSON = json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme,
		scheme.Scheme, json.SerializerOptions{Strict: true})
	toProtobuf = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
)

// encode turns {"object": ...} into the base64 of what client-go would send for
// that object as application/vnd.kubernetes.protobuf.
func encode(line []byte) ([]byte, error) {
	var asked struct {
		Object stdjson.RawMessage `json:"object"`
	}
	if err := stdjson.Unmarshal(line, &asked); err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	object, _, err := fromJSON.Decode(asked.Object, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	var encoded bytes.Buffer
	if err := toProtobuf.Encode(object, &encoded); err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	return []byte(base64.StdEncoding.EncodeToString(encoded.Bytes())), nil
}
