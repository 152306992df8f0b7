// The documentation of the API, by Swagger UI, from the service's own description.

window.SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null, // would send the description to another server
});
