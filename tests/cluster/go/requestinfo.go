package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// The prefixes are kube-apiserver's own.
var resolver = &request.RequestInfoFactory{
	APIPrefixes:          sets.NewString("api", "apis"),
	GrouplessAPIPrefixes: sets.NewString("api"),
}

// question is one request. Target is for bytes that JSON cannot carry (base64
// in JSON); it is used instead of URL when it is given.
type question struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Target []byte `json:"target"`
}

type answerInfo struct {
	IsResourceRequest bool     `json:"isResourceRequest"`
	Path              string   `json:"path"`
	Verb              string   `json:"verb"`
	APIPrefix         string   `json:"apiPrefix"`
	APIGroup          string   `json:"apiGroup"`
	APIVersion        string   `json:"apiVersion"`
	Namespace         string   `json:"namespace"`
	Resource          string   `json:"resource"`
	Subresource       string   `json:"subresource"`
	Name              string   `json:"name"`
	Parts             []string `json:"parts"`
	FieldSelector     string   `json:"fieldSelector"`
	LabelSelector     string   `json:"labelSelector"`
}

// requestInfo says what kube-apiserver takes a request for. The request line is
// parsed by net/http from its bytes: taking a URL apart in any other way would
// answer for another server than the real one.
func requestInfo(line []byte) ([]byte, error) {
	var asked question
	if err := json.Unmarshal(line, &asked); err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	target := asked.Target
	if target == nil {
		target = []byte(asked.URL)
	}
	raw := bytes.Join([][]byte{
		[]byte(asked.Method), []byte(" "), target, []byte(" HTTP/1.1\r\nHost: x\r\n\r\n"),
	}, nil)
	parsed, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)+16))
	if err != nil {
		return nil, fmt.Errorf("request line: %w", err)
	}
	info, err := resolver.NewRequestInfo(parsed)
	if err != nil {
		return nil, fmt.Errorf("request info: %w", err)
	}
	return infoJSON(info)
}

func infoJSON(info *request.RequestInfo) ([]byte, error) {
	parts := info.Parts
	if parts == nil {
		parts = []string{}
	}
	return json.Marshal(answerInfo{
		IsResourceRequest: info.IsResourceRequest,
		Path:              info.Path,
		Verb:              info.Verb,
		APIPrefix:         info.APIPrefix,
		APIGroup:          info.APIGroup,
		APIVersion:        info.APIVersion,
		Namespace:         info.Namespace,
		Resource:          info.Resource,
		Subresource:       info.Subresource,
		Name:              info.Name,
		Parts:             parts,
		FieldSelector:     info.FieldSelector,
		LabelSelector:     info.LabelSelector,
	})
}
