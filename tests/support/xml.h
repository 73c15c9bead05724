/* Well-formed XML, enough of it for what cairo and we write. */
#ifndef CHI_TEST_XML_H
#define CHI_TEST_XML_H

/* Fails the test unless tags nest, attributes are quoted, entities are known and there are more than 50 elements. */
void check_xml(const char *s);

#endif
